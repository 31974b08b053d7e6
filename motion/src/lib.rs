//! Motion generation with Motion Mamba.
