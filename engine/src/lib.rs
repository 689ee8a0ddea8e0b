//! The arithmetic: kernels, and one decoder whose forward and backward are written by hand.
