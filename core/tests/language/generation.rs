//! Generation: reproducible, equal to whole passes, ended by stop tokens.

use super::*;
use mamba_core::BackboneState;
use mamba_core::generate::{Ending, Generation, Sampling};
use models::assert_close;

fn generation(seed: u64) -> Generation {
    let sampling = Sampling { temperature: 1.5, top_k: 8, top_p: 0.9, repetition_penalty: 1.1 };
    Generation { max_tokens: 30, sampling, seed, ..Default::default() }
}

fn tokens(lm: &MambaLm, generation: &Generation) -> Vec<u32> {
    lm.generate(&[3, 1, 4], generation).unwrap().collect::<Result<_>>().unwrap()
}

#[test]
fn one_seed_gives_one_text() -> Result<()> {
    let (_, lm) = model(&config(true), DType::F32)?;
    let first = tokens(&lm, &generation(7));
    assert_eq!(first.len(), 30);
    assert!(first.iter().all(|&token| token < 11), "padding tokens are never drawn: {first:?}");
    assert_eq!(tokens(&lm, &generation(7)), first);
    assert_ne!(tokens(&lm, &generation(8)), first);
    Ok(())
}

#[test]
fn greedy_is_sampling_at_temperature_zero() -> Result<()> {
    let (_, lm) = model(&config(false), DType::F64)?;
    let sampling = Sampling::greedy();
    let got = tokens(&lm, &Generation { max_tokens: 12, sampling, ..Default::default() });
    let mut text = vec![3u32, 1, 4];
    for token in got {
        let whole = lm.forward(&Tensor::from_slice(&text, (1, text.len()), &CPU)?)?;
        let last = whole.narrow(1, text.len() - 1, 1)?.narrow(2, 0, 11)?;
        assert_eq!(token, last.flatten_all()?.argmax(0)?.to_scalar::<u32>()?);
        text.push(token);
    }
    Ok(())
}

#[test]
fn a_stop_token_ends_the_text_and_is_not_part_of_it() -> Result<()> {
    let (_, lm) = model(&config(true), DType::F32)?;
    let whole = tokens(&lm, &generation(7));
    let stop = whole[5];
    let first = whole.iter().position(|&token| token == stop).unwrap();
    let generation = Generation { stop: vec![stop], ..generation(7) };
    let mut text = lm.generate(&[3, 1, 4], &generation).unwrap();
    let got: Vec<u32> = text.by_ref().collect::<Result<_>>()?;
    assert_eq!(got, whole[..first]);
    assert_eq!(text.ending(), Some(Ending::Stop));
    Ok(())
}

#[test]
fn a_long_prompt_is_read_in_chunks_as_if_at_once() -> Result<()> {
    let (_, lm) = model(&config(true), DType::F64)?;
    let prompt = ids(2, 2051, 3)?;
    let mut state = BackboneState::new();
    let got = lm.prefill(&prompt, &mut state)?;
    let whole = lm.forward(&prompt)?;
    assert_close("prefill", &got, &whole.narrow(1, 2050, 1)?.squeeze(1)?, 1e-11);
    let next = Tensor::new(&[5u32, 6], &CPU)?;
    let longer = Tensor::cat(&[&prompt, &next.unsqueeze(1)?], 1)?;
    let want = lm.forward(&longer)?.narrow(1, 2051, 1)?.squeeze(1)?;
    assert_close("a step after it", &lm.step(&next, &mut state)?, &want, 1e-11);
    Ok(())
}

#[test]
fn impossible_prompts_are_refused() -> Result<()> {
    let (_, lm) = model(&config(true), DType::F32)?;
    let message = |prompt: &[u32]| lm.generate(prompt, &generation(1)).unwrap_err().to_string();
    assert_eq!(message(&[]), "the prompt has no tokens; give it at least one");
    assert_eq!(message(&[2, 11]), "token 11 of the prompt is outside the vocabulary of 11");
    Ok(())
}
