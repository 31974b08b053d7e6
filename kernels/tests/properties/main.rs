//! What the kernels promise, on odd shapes: they compute what their references say, forward and backward, whatever the
//! sizes, the direction, the segments, the chunks and the number of threads.

mod causal_conv1d;
mod compact;
mod complex_scan;
mod conv2d;
mod cross_entropy;
mod gelu;
mod gpu;
mod instance_norm;
mod linear;
mod norm;
mod selective_scan;
mod ssd;
mod support;
mod threads;
mod top_k;
