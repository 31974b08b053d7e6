//! Sequential recommendation with Mamba4Rec and its relatives.
