"""From a clip's file to the frames that a backbone takes: views, decoding, augmentation."""
