"""The zoo of networks that the tests share."""
