"The command line: parses, calls the chapter's module, prints. `fmtut --help` lists the commands."

import argparse
import dataclasses
import json
import os
import shutil
import sys
from contextlib import redirect_stdout, suppress
from difflib import get_close_matches
from fnmatch import fnmatch
from itertools import combinations
from pathlib import Path

from fmtut import __version__

EPILOG = """examples:
  fmtut doctor
  fmtut ner train --out my-tagger
  fmtut ner train --train train.conll --dev dev.conll --test test.conll --out my-tagger
  fmtut ner train --train train.conll --dev dev.conll --model bert-base-cased --out my-tagger
  fmtut ner train --train train.conll --dev dev.conll --out my-tagger --resume
  torchrun --nproc-per-node 2 -m fmtut ner train --train train.conll --dev dev.conll --out my-tagger
  fmtut ner evaluate --model my-tagger --data test.conll --json scores.json
  echo "Ana Okafor flew to Lund." | fmtut ner predict --model my-tagger --input - --format color
  fmtut ner inspect --train train.conll --dev dev.conll
  fmtut check-notebook handed-in/*.ipynb

exit codes: 0 done, 1 an error of the run, 2 a command that cannot be meant, 130 interrupted, 143 terminated
"""
OURS = ["config.json", "*.safetensors", "model.safetensors.index.json", "tokenizer*.json", "special_tokens_map.json", "vocab.txt",
        "recipe.json", "report.json", "history.json", "demo.json", "report.html", ".report.html.*"] # what a model folder holds
COLORS = {"PER": 34, "ORG": 31, "LOC": 32, "MISC": 35}


class UsageError(ValueError):
    "A command that cannot be meant; exit code 2."


class RunError(ValueError):
    "A command that cannot be carried out; exit code 1."


# --- arguments ---------------------------------------------------------------------------------


def add_columns(parser):
    "The flags that say where words and tags stand in a file: the fields of conll.Columns."
    group = parser.add_argument_group("file layout (default: word first, tag last, tab or blanks between)")
    group.add_argument("--word-column", type=int, default=0, metavar="N", help="column of the words, from 0")
    group.add_argument("--tag-column", type=int, default=-1, metavar="N", help="column of the tags; -1 is the last")
    group.add_argument("--strip-prefix", default="", metavar="TEXT", help="remove TEXT from the start of each word, as en:")
    group.add_argument("--comment", default="", metavar="TEXT", help="lines that start with TEXT are comments, as '#'")
    group.add_argument("--encoding", default="utf-8", metavar="NAME", help="of the file (default utf-8)")


def add_recipe(parser):
    "A flag for each field of training.Recipe; its default depends on --model, so it is filled in later."
    from fmtut.training import Recipe

    group = parser.add_argument_group("recipe (defaults: without --model / with --model)")
    scratch = from_scratch()
    for field in dataclasses.fields(Recipe):
        flag = "--" + field.name.replace("_", "-")
        words = field.metadata["choices"]
        defaults = dict.fromkeys(format(getattr(recipe, field.name), "" if words else "g") for recipe in (scratch, Recipe()))
        group.add_argument(flag, type=field.type, choices=words or None, metavar=None if words else field.type.__name__.upper(),
                           help=f"{field.metadata['help']} (default {' / '.join(defaults)})")


def from_scratch():
    "The recipe for a small BERT with random weights."
    from fmtut.ner import FROM_SCRATCH

    return FROM_SCRATCH


def add_device(parser):
    "Where the model runs."
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: cuda where there is one")


def command(commands, name, run, help, examples=""):
    "Adds one command; `run(args)` carries it out."
    parser = commands.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + ".", epilog=examples and f"example:\n  {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    parser.set_defaults(run=run, parser=parser)
    return parser


def build_parser(argv):
    "The whole parser. Recipe flags need torch, so they are added only where `argv` asks for them."
    parser = argparse.ArgumentParser(
        prog="fmtut", description="How foundation models are made and used: the command line of the course.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"fmtut {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=None, parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    command(commands, "doctor", doctor, "check Python, packages, device, write access and network")
    grading = command(commands, "check-notebook", check_notebooks,
                      "run handed-in notebooks and say which exercises are right (it runs their code, with your rights)",
                      "fmtut check-notebook handed-in/*.ipynb --json > class.json")
    grading.add_argument("files", nargs="+", metavar="FILE.ipynb", help="a learner's notebook")
    grading.add_argument("--json", action="store_true", help="print the rows as JSON")
    group = commands.add_parser("ner", help="named-entity recognition: train, evaluate, predict, inspect, demo", epilog=EPILOG,
                                formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    group.set_defaults(run=None, parser=group)
    add_ner(group.add_subparsers(title="commands", metavar="COMMAND"), argv)
    return parser


def add_ner(commands, argv):
    "The commands of `fmtut ner`."
    train = command(commands, "train", ner_train, "train a tagger, on your files or on the built-in news",
                    "fmtut ner train --train train.conll --dev dev.conll --epochs 20 --out my-tagger")
    for split, use in [("train", "training"), ("dev", "choosing the best epoch"), ("test", "the final score")]:
        train.add_argument(f"--{split}", metavar="FILE", help=f"sentences for {use}")
    train.add_argument("--model", metavar="NAME_OR_DIR", help="BERT to start from: a folder or a name on the hub (default: a small one from scratch)")
    train.add_argument("--out", metavar="DIR", required=True, help="folder for model, report.html, report.json and history.json")
    train.add_argument("--overwrite", action="store_true", help="replace an earlier model in --out; without --resume, forget an unfinished run")
    train.add_argument("--resume", action="store_true", help="go on with the unfinished run in DIR.checkpoints, if there is one")
    train.add_argument("--checkpoint-every", type=int, metavar="STEPS",
                       help="steps between two checkpoints in DIR.checkpoints (default: one after each epoch; 0: none)")
    evaluate = command(commands, "evaluate", ner_evaluate, "score a tagger on a labelled file",
                       "fmtut ner evaluate --model my-tagger --data test.conll --json scores.json")
    evaluate.add_argument("--data", metavar="FILE", required=True, help="labelled sentences")
    evaluate.add_argument("--json", metavar="OUT", help="also write the scores to this file")
    predict = command(commands, "predict", ner_predict, "tag text or sentences, as a stream",
                      "fmtut ner predict --model my-tagger --input news.txt --format json > news.jsonl")
    predict.add_argument("--input", metavar="FILE", required=True, help="what to tag; - is standard input")
    predict.add_argument("--input-format", choices=["text", "conll"], default="text",
                         help="text: a sentence a line; conll: a word a line (default text)")
    predict.add_argument("--format", choices=["conll", "json", "color"], default="conll",
                         help="conll: word, tab, tag; json: an object a line; color: for reading (default conll)")
    for parser in evaluate, predict:
        parser.add_argument("--model", metavar="DIR", required=True, help="folder of a trained tagger")
    inspect = command(commands, "inspect", ner_inspect, "say what is in labelled files before training on them",
                      "fmtut ner inspect --train train.conll --dev dev.conll --test test.conll")
    for split in "train", "dev", "test":
        inspect.add_argument(f"--{split}", metavar="FILE", required=split == "train", help=f"the {split} sentences")
    demo = command(commands, "demo", ner_demo, "train on the built-in news and show what came out", "fmtut ner demo --out runs/ner")
    demo.add_argument("--out", metavar="DIR", required=True, help="folder that the demo owns; an earlier demo there is replaced")
    demo.add_argument("--sentences", type=int, default=5000, metavar="N", help="sentences to train on, from 50 to 5000 (default 5000)")
    for parser in train, evaluate, predict, inspect:
        add_columns(parser)
    for parser in train, evaluate, predict, demo:
        add_device(parser)
    for parser in train, demo:
        if parser.prog.split()[-1] in argv:
            add_recipe(parser)


# --- what the commands share -------------------------------------------------------------------


def choose_device(args):
    "The device that --device names; `RunError` for cuda where torch sees none."
    from fmtut.environment import best_device

    if args.device == "cuda" and best_device() != "cuda":
        raise RunError("--device cuda: torch sees no GPU here; use --device cpu, or install a CUDA build of torch")
    return best_device() if args.device == "auto" else args.device


def read(args, split):
    "The sentences of the file that --SPLIT names, with the layout flags."
    from fmtut.conll import Columns, read_conll

    layout = {field.name: getattr(args, field.name) for field in dataclasses.fields(Columns)}
    return read_conll(getattr(args, split), Columns(**layout))


def read_splits(args):
    "Split -> its sentences, for those of train, dev and test whose file was named."
    return {split: read(args, split) for split in ("train", "dev", "test") if getattr(args, split)}


def built_in_splits():
    "Split -> its sentences, of the built-in news."
    from fmtut.newswire import SPLITS, load_newswire

    return {split: load_newswire(split) for split in SPLITS}


def recipe_from(args, base):
    "The recipe: the base, changed by the flags that were given."
    from fmtut.training import RecipeError, recipe_from_dict

    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(base)}
    try:
        return recipe_from_dict({name: value for name, value in given.items() if value is not None}, base)
    except RecipeError as error:
        raise UsageError(f"--{str(error).replace('_', '-')}") from None


def check_out(path, replace, hint):
    "`RunError` unless the folder is new, empty, or, with `replace`, holds nothing but what a run of ours has written."
    from fmtut.weights import check_place

    place = check_place(path)
    names = sorted(file.name for file in place.iterdir()) if place.exists() else []
    foreign = [name for name in names if not any(fnmatch(name, pattern) for pattern in OURS)]
    if foreign and replace:
        raise RunError(f"{path}: holds {foreign[0]}, which no run of ours has written; name another folder")
    if names and not replace:
        raise RunError(f"{path}: exists and is not empty; {hint}")


def check_file(path):
    "`RunError` unless a file can be written there."
    place = Path(path).expanduser()
    if not str(path) or place.is_dir() or not place.absolute().parent.is_dir():
        raise RunError(f"{path or repr(path)}: no file can be written there; name a file in an existing folder")


def color(result, codes=True):
    "A tagged text with its entities marked, by ANSI colours or by brackets."
    parts, end = [], 0
    for entity in result.entities:
        parts.append(result.text[end:entity.start])
        number = COLORS.get(entity.type, 36)
        parts.append(f"\033[1;{number}m{entity.text}\033[0;{number}m {entity.type}\033[0m" if codes else f"[{entity.text} {entity.type}]")
        end = entity.end
    return "".join(parts) + result.text[end:]


def program():
    "How to call this command from here: its path where it lies below the current folder, as in .venv/bin."
    path = Path(sys.argv[0]).absolute()
    return path.relative_to(Path.cwd()).as_posix() if path.name == "fmtut" and path.is_relative_to(Path.cwd()) else "fmtut"


def write_json(path, content):
    "Writes beside and renames, so that an earlier file is never half replaced; a device or a pipe is written to."
    path, text = Path(path).expanduser().resolve(), json.dumps(content, indent=1) + "\n"
    regular = not path.exists() or path.is_file()
    fresh = path.with_name(f".{path.name}.{os.getpid()}") if regular else path
    try:
        fresh.write_text(text, encoding="utf-8")
        if regular:
            fresh.replace(path)
    except OSError as error:
        if regular:
            fresh.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written ({error.strerror})") from None


def write_page(args, model, tokenizer, splits):
    "Writes report.html with the worst sentences of the last split (test where there is one); returns the line that names it, or why there is none."
    try:
        from fmtut.errors import write_page

        page = write_page(args.out, model, tokenizer, splits)
        return f"open in a browser: {Path(args.out) / page.name}"
    except (Exception, KeyboardInterrupt) as error: # the model is safe by now, and nothing may hide that
        if args.debug:
            raise
        return f"warning: report.html was not written ({type(error).__name__}: {' '.join(str(error).split()) or 'no message'})"


# --- the commands ------------------------------------------------------------------------------


def doctor(args):
    "Exit code 1 if something is wrong."
    from fmtut.environment import doctor

    return 0 if doctor() else 1


def check_notebooks(args):
    "One row a notebook; exit code 1 if one of them could not be run to its end."
    from fmtut.grading import check_notebook, row_line

    print(f"running the code of {len(args.files)} notebook{'s' * (len(args.files) > 1)} with your rights", file=sys.stderr, flush=True)
    rows = []
    for file in args.files:
        rows.append(check_notebook(file))
        if not args.json:
            print(row_line(rows[-1], max(map(len, args.files))), flush=True)
    if args.json:
        print(json.dumps(rows, indent=1))
    return 1 if any(row["problem"] for row in rows) else 0


def checkpoint_folder(args):
    "DIR.checkpoints, beside --out: that folder is touched only at the end."
    place = Path(args.out).expanduser()
    return place.with_name(place.name + ".checkpoints")


def forget_run(folder):
    "Removes the checkpoints in a folder, and nothing else; `CheckpointError` while a run is at work there."
    from fmtut.checkpoints import NAMES, only_writer

    with only_writer(folder / "lock"):
        for path in folder.glob(NAMES):
            shutil.rmtree(path)


def checkpoint_callbacks(args, tokenizer, splits):
    "The `Checkpoint` that the flags ask for; an unfinished run is never mixed with a new one, and never forgotten without being asked."
    from fmtut.checkpoints import NAMES
    from fmtut.distributed import RankCheckpoint, is_main
    from fmtut.ner import identity

    folder = checkpoint_folder(args)
    if not args.resume and any(folder.glob(NAMES)):
        if not args.overwrite:
            raise RunError(f"{folder}: holds an unfinished run; give --resume to go on with it, or --overwrite to forget it")
        if is_main():
            forget_run(folder)
    if args.checkpoint_every == 0:
        return []
    unchanged = identity(tokenizer, {name: splits[name] for name in ("train", "dev")})
    return [RankCheckpoint(folder, args.checkpoint_every, keep=2, resume=args.resume, identity=unchanged)]


def ner_train(args):
    "Everything is read and checked before training starts; --out is touched only at the end."
    if bool(args.train) != bool(args.dev):
        raise UsageError("--train and --dev go together: dev decides which epoch is kept")
    if args.test and not args.train:
        raise UsageError("--test needs --train and --dev; without files the built-in news is used")
    if args.checkpoint_every is not None and args.checkpoint_every < 0:
        raise UsageError(f"--checkpoint-every is {args.checkpoint_every}; give 0 for none, or the steps between two checkpoints")
    if args.resume and args.checkpoint_every == 0:
        raise UsageError("--resume needs checkpoints; leave out --checkpoint-every 0")
    check_out(args.out, args.overwrite, "give --overwrite, too, to replace it when the run ends" if args.resume else "name another folder, or give --overwrite")
    from fmtut.distributed import is_main, processes

    device = choose_device(args)
    with processes(device), open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if is_main() else nowhere):
        train_and_report(args, device)


def train_and_report(args, device):
    "The work of `ner train`, in each process that torchrun started; the first one prints and writes."
    from fmtut.distributed import is_main
    from fmtut.evaluation import format_report
    from fmtut.ner import FROM_SCRATCH, load_model, small_bert, train_to_folder
    from fmtut.training import Recipe

    recipe = recipe_from(args, Recipe() if args.model else FROM_SCRATCH)
    splits = read_splits(args) or built_in_splits()
    model, tokenizer = load_model(args.model) if args.model else small_bert(splits["train"], recipe.seed)
    callbacks = checkpoint_callbacks(args, tokenizer, splits)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters on {device}, {len(tokenizer):,} pieces")
    scores = train_to_folder(model.to(device), tokenizer, splits, recipe, args.out, callbacks)
    if not is_main():
        return
    if callbacks:
        forget_run(folder := checkpoint_folder(args))
        with suppress(OSError): # other files may be there
            (folder / "lock").unlink(missing_ok=True)
            folder.rmdir()
    for name, score in scores.items():
        print(f"\n{name}\n{format_report(score)}")
    page = write_page(args, model, tokenizer, splits)
    print(f"model, report.json and history.json are in {args.out}\n{page}\ntag a text: {program()} ner predict --model {args.out} --input FILE")


def ner_evaluate(args):
    "Prints both reports."
    from fmtut.evaluation import format_report
    from fmtut.ner import evaluate, load_model

    if args.json is not None:
        check_file(args.json)
    device = choose_device(args)
    sentences = read(args, "data")
    model, tokenizer = load_model(args.model)
    scores = evaluate(model.to(device), tokenizer, sentences, args.data)
    print(format_report(scores))
    if args.json is not None:
        write_json(args.json, scores)


def arriving_lines(stream, before_waiting):
    "Lines of a binary stream as they come; calls `before_waiting` each time before it asks for more."
    rest = b""
    while True:
        before_waiting()
        chunk = stream.read1(1 << 18)
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


def ner_predict(args):
    "Answers what has come before it waits for more, 128 sentences at most at a time: memory does not grow with the input."
    from fmtut.conll import Columns, DataError, numbered_lines, open_binary, stream_conll
    from fmtut.ner import Tagger

    show = {"conll": lambda result: "".join(f"{word}\t{tag}\n" for word, tag in zip(result.words, result.tags)),
            "json": lambda result: json.dumps(dataclasses.asdict(result), ensure_ascii=False), "color": color}[args.format]
    device = choose_device(args)
    with open_binary(args.input) as stream:
        tagger, waiting = Tagger(args.model, device), []

        def answer():
            for result in tagger(waiting):
                print(show(result))
            waiting.clear()
            sys.stdout.flush()

        lines = numbered_lines(arriving_lines(stream, answer), args.input, args.encoding)
        if args.input_format == "conll":
            columns = Columns(args.word_column, None, args.strip_prefix, args.comment)
            items = (sentence.words for sentence in stream_conll(lines, args.input, columns))
        else:
            items = (line for _, line in lines)
        try:
            for item in items:
                waiting.append(item)
                if len(waiting) == 128:
                    answer()
        except DataError: # what came before the bad line is answered
            answer()
            raise
        answer()


def ner_inspect(args):
    "Prints a block for each file, then what the files share."
    from fmtut.alignment import describe
    from fmtut.ner import label_list, small_tokenizer
    from fmtut.newswire import seen_share
    from fmtut.uncertainty import find_leaks

    splits = read_splits(args)
    tokenizer = small_tokenizer(splits["train"])
    for name, sentences in splits.items():
        print(f"{name}: {getattr(args, name)}")
        for key, value in describe(sentences, tokenizer).items():
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v:,.1f}" if isinstance(v, float) else f"{k} {v:,}" for k, v in value.items()) or "none"
            print(f"  {key:22} {value if isinstance(value, str) else format(value, ',')}")
    print(f"\npieces are those of a WordPiece vocabulary of {len(tokenizer):,} trained on the train file")
    known = set(label_list(splits["train"]))
    for name in list(splits)[1:]:
        if unknown := sorted({label[2:] for label in set(label_list(splits[name])) - known}):
            print(f"{name}: train has no entity of type {', '.join(unknown)}, so a model cannot learn it")
    for first, second in combinations(splits, 2):
        leaks = find_leaks(splits[first], splits[second])
        print(f"{second}: {len(leaks):,} of {len(splits[second]):,} sentences stand word for word in {first}; "
              f"{1 - seen_share(splits[first], splits[second]):.1%} of its mentions do not occur there")


def ner_demo(args):
    "`make ner`: the whole road on the built-in news."
    if not 50 <= args.sentences <= 5000:
        raise UsageError(f"--sentences is {args.sentences}; give from 50, so that each type occurs, to 5000, which are all")
    check_out(args.out, (Path(args.out).expanduser() / "demo.json").exists(), "the demo replaces only what an earlier demo wrote; name another folder")
    from fmtut.evaluation import entity_report, format_report, format_rows
    from fmtut.ner import FROM_SCRATCH, Tagger, evaluate, small_bert, train_to_folder
    from fmtut.newswire import dictionary_tagger, generate, linear_tagger

    recipe, device = recipe_from(args, FROM_SCRATCH), choose_device(args)
    splits = built_in_splits()
    splits["train"] = splits["train"][:args.sentences]
    words, tags = [s.words for s in splits["test"]], [s.tags for s in splits["test"]]
    rows = {}
    for name, make in [("dictionary of the training names", dictionary_tagger), ("linear model on word shapes", linear_tagger)]:
        print(f"baseline: {name}", flush=True)
        rows[name] = entity_report(tags, make(splits["train"])(words))["micro"]
    model, tokenizer = small_bert(splits["train"], recipe.seed)
    model.to(device)
    print(f"\na BERT of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million random parameters, on {device}")
    rows["this BERT before training"] = evaluate(model, tokenizer, splits["test"], "test, before training")["entity"]["micro"]
    scores = train_to_folder(model, tokenizer, splits, recipe, args.out, demo=rows)
    rows["this BERT after training"] = scores["test"]["entity"]["micro"]
    print(f"\nThe test set\n\n{format_report(scores['test'])}\nEntities, micro average\n{format_rows(rows)}\nThree fresh sentences")
    tagger = Tagger(args.out, device)
    fresh = [s.words for s in generate(60, seed=recipe.seed + 2026) if len(s.words) > 9 and set(s.tags) - {"O"}][:3]
    for result in tagger(fresh):
        print(" ", color(result, codes=sys.stdout.isatty()))
    page = write_page(args, model, tokenizer, splits)
    print(f"\nmodel, report.json and history.json are in {args.out}\n{page}\ntag your own text:\n"
          f'  echo "Your sentence." | {program()} ner predict --model {args.out} --input - --format color')


# --- errors ------------------------------------------------------------------------------------


def fail(message, code):
    "One line on standard error."
    print(f"fmtut: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def stopped(args, error):
    "What a user has to know after an interruption."
    return "; the run is saved, --resume goes on with it" if str(error) and hasattr(args, "resume") else "; nothing that existed was changed"


def run(args):
    "Carries out one command and turns every error into an exit code."
    try:
        code = args.run(args) or 0
        sys.stdout.flush() # here, so that a closed pipe is seen while it can be handled
        return code
    except KeyboardInterrupt as stop:
        return fail(f"interrupted{stopped(args, stop)}", 130)
    except BrokenPipeError: # the reader has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        if type(error).__name__ == "Terminated": # of fmtut.checkpoints, which is imported only where it is used
            return fail(f"terminated{stopped(args, error)}", 143)
        if args.debug or not isinstance(error, Exception):
            raise
        if isinstance(error, UsageError):
            return fail(f"{error} (see {args.parser.prog} --help)", 2)
        known = (ValueError, OSError, RuntimeError)
        text = str(error) or type(error).__name__
        return fail(text if isinstance(error, known) else f"{type(error).__name__}: {text}; --debug shows where", 1)


def main(argv=None):
    "The entry point of the `fmtut` command; returns the exit code."
    argv = sys.argv[1:] if argv is None else argv
    if sys.stdout is None: # closed by the caller, as in `>&-`; the descriptor must not go to the next file
        sys.stdout = open(os.devnull, "w")
    for stream in sys.stdout, sys.stderr:
        if hasattr(stream, "reconfigure"): # names are not ASCII, whatever LANG says
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        args, rest = build_parser(argv).parse_known_args(argv)
        if rest: # told by the command that was meant, with its own usage
            known = [flag for action in args.parser._actions for flag in action.option_strings]
            nearest = get_close_matches(rest[0], known, n=1)
            args.parser.error(f"unrecognized arguments: {' '.join(rest)}" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    if args.run is None:
        args.parser.print_help(sys.stderr)
        return 2
    return run(args)
