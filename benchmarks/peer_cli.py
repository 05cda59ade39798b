"""Command line and JSON line that both peers share; the flags are those of `python
benchmarks/speed.py`. The programs of this folder read them with argparse, since the environments of
the peers do not hold the packages of this project."""

import argparse
import json

from lengths import read_lengths, varied_lengths


def parse_args(what: str) -> argparse.Namespace:
    """Flags of a peer. Raises SystemExit with a usage line where one is wrong."""
    parser = argparse.ArgumentParser(
        description=f"Time {what} on the CPU after a first, untimed call."
    )
    parser.add_argument("mode", choices=("rollout", "step"))
    parser.add_argument("--model", required=True, help="Qwen2 checkpoint directory")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8, help="rows of each prompt")
    parser.add_argument("--prompt-length", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--seats", type=int, default=64, help="rows decoded together")
    parser.add_argument("--lengths", choices=("fixed", "varied"), default="fixed")
    parser.add_argument(
        "--lengths-file", help="JSON list of the new tokens of each row; implies --lengths=varied"
    )
    parser.add_argument("--steps", type=int, default=2, help="timed repeats")
    parser.add_argument(
        "--micro-batch", type=int, default=0, help="rows of one backward pass; 0 = all"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", action="store_true", help="accepted for likeness: the JSON line is always printed"
    )
    args = parser.parse_args()
    if args.lengths_file:
        args.lengths = "varied"
    rows = args.prompts * args.group
    if args.micro_batch and (rows % args.micro_batch or args.micro_batch % args.group):
        parser.error(
            f"--micro-batch={args.micro_batch}: needs a divisor of {rows} rows that holds whole"
            " groups"
        )
    return args


def row_lengths(args: argparse.Namespace) -> list[int]:
    """New tokens of each of the prompts x group rows."""
    rows = args.prompts * args.group
    if args.lengths_file:
        return read_lengths(args.lengths_file, rows, args.new_tokens)
    return (
        varied_lengths(rows, args.new_tokens)
        if args.lengths == "varied"
        else [args.new_tokens] * rows
    )


def report(side: str, args: argparse.Namespace, result: dict) -> None:
    """Prints the JSON line: the result, tokens per second, and the settings of the measurement."""
    rate = {"tokens_per_s": result["tokens"] / result["seconds"]}
    print(json.dumps({"side": side} | result | rate | {"settings": vars(args)}), flush=True)
