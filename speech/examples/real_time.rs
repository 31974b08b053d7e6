//! Real-time factors of the presets, with random weights: seconds of work for a second of sound.
//!
//! ```sh
//! cargo run --release -p mamba-speech --example real_time             # all of them
//! cargo run --release -p mamba-speech --example real_time semamba
//! ```

use candle_core::{DType, Device};
use mamba_core::Params;
use mamba_speech::{Config, Enhancer, SeMamba, Stream, sample};
use std::time::Instant;

const SECONDS: f64 = 4.0;
const REPEATS: usize = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    mamba_core::cli::tune_allocator();
    mamba_core::cli::tune_candle();
    let noisy = sample::noise(1, SECONDS);
    println!("{} threads, {SECONDS} s of sound, best of {REPEATS}", rayon::current_num_threads());
    let asked: Vec<String> = std::env::args().skip(1).collect();
    for name in Config::PRESETS.into_iter().filter(|name| asked.is_empty() || asked.iter().any(|a| a == name))
    {
        let cfg = Config::preset(name).ok_or("a preset has a config")?;
        let fresh = Params::fresh(0, DType::F32, &Device::Cpu);
        SeMamba::new(&cfg, &fresh.builder())?;
        let params = Params::frozen(fresh.to_tensors(), DType::F32, &Device::Cpu);
        let enhancer =
            Enhancer::new(SeMamba::new(&cfg, &params.builder())?, cfg.clone(), DType::F32, &Device::Cpu);
        let time = |work: &dyn Fn() -> candle_core::Result<()>| -> candle_core::Result<f64> {
            let mut best = f64::INFINITY;
            for _ in 0..REPEATS {
                let clock = Instant::now();
                work()?;
                best = best.min(clock.elapsed().as_secs_f64() / SECONDS);
            }
            Ok(best)
        };
        let whole = time(&|| enhancer.enhance(&noisy).map(drop))?;
        println!("{name:<16} {:>9} parameters  whole {whole:.3}", params.count());
        if cfg.model_cfg.causal {
            let live = time(&|| {
                let mut stream = Stream::new(&enhancer)?;
                noisy.chunks(cfg.stft_cfg.hop_size).try_for_each(|hop| stream.push(hop).map(drop))?;
                stream.finish().map(drop)
            })?;
            println!("{name:<16} {:>20}  live, hop by hop {live:.3}", "");
        }
    }
    Ok(())
}
