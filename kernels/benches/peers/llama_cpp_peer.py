"""Prefill and decoding of the 130 M Mamba shape by llama.cpp, one JSON object a line.

python llama_cpp_peer.py ROW SECONDS   measures one row in this process
python llama_cpp_peer.py               lists the rows

Needs the packages llama-cpp-python and gguf. Weights are random; llama.cpp always computes the head. Its prefill computes
the head for the last token only, as ours does.
"""

import os
import sys
import tempfile

from measured import rates, report

LAYERS, D, STATE, CONV, VOCAB = 24, 768, 16, 4, 50_280
INNER, RANK = 2 * D, D // 16
PROMPT, STEPS = 2048, 4
ROWS = {
    "prefill 24x768 L2048": ("f32", True),
    "prefill 24x768 L2048 f16": ("f16", True),
    "decode+head 24x768 full": ("f32", False),
    "decode+head 24x768 f16": ("f16", False),
}


def write_model(path, kind):
    """A GGUF file with random weights; matrices in `kind`, the rest in f32."""
    import gguf
    import numpy as np

    rng = np.random.default_rng(1)
    matrix = np.float16 if kind == "f16" else np.float32
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(LAYERS)
    writer.add_ssm_conv_kernel(CONV)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(RANK)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")

    def add(name, shape, dtype=np.float32, scale=0.02):
        writer.add_tensor(name, (rng.standard_normal(shape, dtype=np.float32) * scale).astype(dtype))

    add("token_embd.weight", (VOCAB, D), matrix)
    writer.add_tensor("output_norm.weight", np.ones(D, dtype=np.float32))
    for i in range(LAYERS):
        block = f"blk.{i}."
        writer.add_tensor(block + "attn_norm.weight", np.ones(D, dtype=np.float32))
        add(block + "ssm_in.weight", (2 * INNER, D), matrix)
        add(block + "ssm_conv1d.weight", (INNER, CONV))
        add(block + "ssm_conv1d.bias", (INNER,))
        add(block + "ssm_x.weight", (RANK + 2 * STATE, INNER), matrix)
        add(block + "ssm_dt.weight", (INNER, RANK), matrix)
        writer.add_tensor(block + "ssm_dt.bias", np.full(INNER, -4.0, dtype=np.float32))
        writer.add_tensor(block + "ssm_a", -np.tile(np.arange(1, STATE + 1, dtype=np.float32), (INNER, 1)))
        writer.add_tensor(block + "ssm_d", np.ones(INNER, dtype=np.float32))
        add(block + "ssm_out.weight", (D, INNER), matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    if len(sys.argv) == 1:
        print("\n".join(ROWS))
        return
    row, seconds = sys.argv[1], float(sys.argv[2])
    kind, prefill = ROWS[row]
    import llama_cpp

    path = os.path.join(tempfile.gettempdir(), f"mamba-130m-{kind}.gguf")
    if not os.path.exists(path):
        write_model(path + ".part", kind)
        os.replace(path + ".part", path)
    threads = len(os.sched_getaffinity(0))
    llm = llama_cpp.Llama(
        path, n_ctx=PROMPT + 4096, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def run():
        if prefill:
            llm.reset()
            llm.eval([17] * PROMPT)
        else:
            for _ in range(STEPS):
                llm.eval([17])

    tokens = PROMPT if prefill else STEPS
    found = rates(tokens, run, seconds)
    report(f"llama.cpp (llama-cpp-python {llama_cpp.__version__})", row, found)


main()
