"""What flow and watch record, one observer a file."""
