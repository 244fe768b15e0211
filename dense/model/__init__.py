"""A backbone and a head as one network: saved as a directory, applied in windows and with test-time augmentation."""
