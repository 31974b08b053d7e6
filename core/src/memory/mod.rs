//! Managing the memory of a state space model: what its hidden states hold, pass on and cost.
//!
//! | module | does | source |
//! |---|---|---|
//! | [`dense`] | lets a layer read the hidden states of shallower ones | DenseMamba, arXiv 2403.00818 |
//! | [`suppress`] | lets hidden states that hold what is peculiar to a domain count less | DGMamba, arXiv 2404.07794 |
//! | [`compress`] | reduces the number of states by balanced truncation | Ezoe and Sato, arXiv 2402.15993 |

pub mod compress;
pub mod dense;
pub mod suppress;
