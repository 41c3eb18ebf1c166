"""Is a dataset what its manifests say, and back to its last good state where it is not."""
