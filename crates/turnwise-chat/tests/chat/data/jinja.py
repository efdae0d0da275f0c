"""Writes jinja.json: expressions in templates, with what they give in the Jinja of transformers.

    python jinja.py > jinja.json
"""

import json
import sys

import transformers.utils.chat_template_utils as chat

X = {"x": "é", "n": 7, "f": 2.5, "d": {"a": "one", "b": 2}, "fmt": "<%s>", "l": ["p", "q"], "none": None}
CODE = r"""
'%s-%d' % ('a', 3)
'%s' % x
'%(a)s and %(b)d' % d
'%5d|%-5d|%05d|%+d' % (n, n, n, n)
'%.3f|%8.2f|%e' % (f, f, f)
'%x|%X|%o|%c|%i' % (255, 255, 8, 'z', n)
'%s' % none
'%s %%' % n
'%s' % x|upper
'%s' % (x ~ 'b') + '!'
'[%s]' % l|join(',')
fmt % x
fmt % ('<%s>' % x)
(fmt ~ '%d') % (x, n)
'%r' % 'a'
d.a % ()
n % 3
-n % 3
10 * n % 4
n % 4 * 10
(n + 1) % n
7.5 % 2
n % d.b
'a' if n % 2 else 'b'
'%s' % x if n % 2 == 1 else 'no'
'%s' % l[0]
'%s' % d['a'].upper()
'abc'.zfill(6) ~ '-5'.zfill(4)
'abc'.ljust(6) ~ '|' ~ 'abc'.rjust(6, '.') ~ '|' ~ 'abc'.center(6) ~ '|' ~ 'ab'.center(5, '*') ~ '|'
'Hello World'.swapcase()
'Hello World'.istitle() ~ 'hello'.istitle() ~ 'HeLlo'.istitle() ~ ''.istitle()
'a\tbc\td'.expandtabs() ~ 'a\tb'.expandtabs(4)
l.index('q')
'abcdef'.startswith('cd', 2)
'abcdef'.startswith('cd', 1)
'abcdef'.endswith('cd', 0, 4)
'abcdef'.startswith(('x', 'ef'), -2)
'one two, three_four 5'|wordcount
'<b>bold</b> and <i>more</i>'|striptags
1|filesizeformat
13000|filesizeformat
4100000|filesizeformat
1048576|filesizeformat(true)
1e20
1e-7
1.5e16
123456.0
0.0001
f
documents is defined
documents is none
'<'|safe + '>'
'<' + '>'|safe
('<'|safe + '&') + '"' + "'"
'<'|safe ~ '>'
'<'|safe + ('&' ~ '"') + n|string
x + ('<'|safe) + x
'a<' + '<'|safe if n + 1 == 8 else 'b'
'<'|safe + d['a'] + {'a': '<' + '>'}['a']
'<'|safe + l[-1 + 1] + l[0:0 + 1]|join('<' + '>')
-1 + n - 2 + d.b ~ 'safe'
('safe', l + ['r'])
'safe' ~ (1.5 + 2) ~ (n + 2 * 3)
'<'|safe + n
'<'|safe + none
[1]|safe + '<'
(('<'|safe + '<')|trim) + '<'
('<'|safe + '<')|upper + '<'
"""

TEMPLATES = [
    "{{-'a<' + '<'|safe-}}",
    "{{- '<'|safe + '<' -}} <",
    "{%-set y = '<'|safe + '<'%}{{y + '<'}}",
    "{%- if '<' + '<'|safe == '&lt;<' -%}yes{%- endif -%}",
    "{%- for c in ['<' + 'a'|safe, '<' + 'a'] -%}{{ c + '<' }}{%- endfor -%}",
    "{%- macro m(a, b='<' + '>') -%}{{ a + b }}{%- endmacro -%}{{ m('<'|safe) + m('<') }}",
    "{%- set ns = namespace(t='') -%}{%- for c in l -%}{%- set ns.t = ns.t + c|safe + '<' -%}{%- endfor -%}{{ ns.t }}",
]


def main():
    cases = []
    lines = CODE.strip("\n").split("\n")
    forms = ["{{ %s }}", "{%%- set y = %s %%}{{- y }}"]
    for template in [form % line for line in lines for form in forms] + TEMPLATES:
        try:
            text = chat._compile_jinja_template(template).render(messages=[], documents=None, **X)
        except Exception as error:
            text = None
        cases.append({"template": template, "output": text})
    json.dump({"variables": X, "cases": cases}, sys.stdout, ensure_ascii=False, indent=1)
    print()


main()
