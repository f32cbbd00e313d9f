"""What notebooks, exercises and pages need; of the library, a sweep's report alone uses it."""
