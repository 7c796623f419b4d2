"""Training crops: decoding, sampling and augmentation."""
