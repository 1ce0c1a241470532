"""What can be analysed, one format a file: each gives the tensors as `Stored`, and reads none before it is asked to."""
