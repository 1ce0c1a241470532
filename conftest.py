"""Every annotated shape is checked while the tests run: jaxtyping reads the signatures, beartype enforces them."""

from jaxtyping import install_import_hook

install_import_hook("equipoise", "beartype.beartype")
