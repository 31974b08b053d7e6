//! What the kernels promise, on odd shapes: they compute what their references say, forward and backward, whatever the
//! sizes, the direction, the segments, the chunks and the number of threads.

mod causal_conv1d;
mod emulated;
mod linear;
mod norm;
mod selective_scan;
mod support;
mod threads;
