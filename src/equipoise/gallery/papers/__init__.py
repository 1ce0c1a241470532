"""The papers around the gallery's own, one file each with a `PAPER`; `equipoise.gallery.literature` finds them."""
