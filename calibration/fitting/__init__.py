"""From labelled calls to a profile: layer, means, readout, signals, calibrator."""
