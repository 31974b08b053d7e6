//! Long-horizon time-series forecasting with S-Mamba, TimeMachine and Bi-Mamba+.
