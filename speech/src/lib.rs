//! Speech enhancement with SEMamba.
