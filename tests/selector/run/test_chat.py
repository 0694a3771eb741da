"""Chat templates: as transformers renders them, within limits."""

from __future__ import annotations

from typing import Any

import pytest

from exporter.bundle import BundleError
from selector.run.generate import chat
from selector.run.generate.chat import ChatTemplate
from selector.run.inputs import InputError
from tests.helpers.generators import TEMPLATE

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why? {{ 1 }} <b>\n"}]
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = '' %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ bos_token + '[INST] ' + (system_message if loop.first else '') ~ message['content'] | trim ~ ' [/INST]' }}"
    "{% if loop.last %}{% break %}{% endif %}{% endfor %}"
)
OTHER = (
    "{%- set ns = namespace(last='', count=0) -%}\n{%- for m in messages %}\n    {%- set ns.count = ns.count + 1 %}\n"
    "    {%- macro said(x) %}<{{ x|upper }}>{% endmacro %}\n    {{- said(m.role) + m.content.split('\\n')[0].strip() }}\n"
    "    {%- set ns.last = m.role %}\n{%- endfor %}\n"
    "{{- messages|tojson(indent=1) }}{{ '%02d' % ns.count }}{{ 'x'.ljust(4, '.') }}"
)


@pytest.mark.parametrize("template", [TEMPLATE, LLAMA_2, OTHER])
def test_rendered_as_transformers_does(template: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    (expected,), _ = render_jinja_template(
        [MESSAGES], chat_template=template, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    assert ChatTemplate(template, bos_token="<s>", eos_token="</s>").render(MESSAGES) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "recursion"),
        ("{{ 'x' * 10**9 }}", "allowed are"),
        ("{{ 10**9 * 'x' }}", "allowed are"),
        ("{{ [1] * 10**9 }}", "allowed are"),
        ("{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "makes more than"),
        ("{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "allowed are"),
        (
            "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}"
            "{% set ns.s = t %}{% endfor %}",
            "makes more than",
        ),
        ("{{ 'x'.ljust(10**9) }}", "asks for 1000000000"),
        ("{{ 'x'|center(10**9) }}", "asks for 1000000000"),
        ("{{ '%1000000000d' % 1 }}", "fills a text up"),
        ("{{ '%1000000000d'|format(1) }}", "fills a text up"),
        ("{{ '{:1000000000}'.format(1) }}", "fills a text up"),
        ("{{ ('x' * 9999).replace('x', 'x' * 99999) }}", "may make"),
        ("{{ 9**(9**(9**9)) }}", "too large"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% import 'os' as os %}", "no loader"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ undefined.missing }}", "undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_one_that_does_what_none_may_is_stopped(template: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "SECONDS", 0.2)
    with pytest.raises(BundleError, match=rf"chat template: .*{message}"):
        ChatTemplate(template).render(MESSAGES)


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ messages", "{% unknown %}", pytest.param("x" * (chat.SOURCE + 1), id="long")]
)
def test_what_is_no_template_is_refused(template: str) -> None:
    with pytest.raises(BundleError, match="chat template: "):
        ChatTemplate(template)


def test_a_template_refuses_messages_in_its_own_words() -> None:
    with pytest.raises(InputError, match="messages: the bundle's chat template refuses them: roles must alternate"):
        ChatTemplate(LLAMA_2, bos_token="").render([{"role": "assistant", "content": "x"}])


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([], "messages: allowed are one or more"),
        ("hello", "messages: allowed are one or more"),
        ([3], r"messages\[0\] = 3"),
        ([{"content": "x"}], r"messages\[0\].role = None"),
        ([{"role": "user", "content": "x"}, {"role": "devil", "content": "x"}], r"messages\[1\].role = 'devil'"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\].content"),
    ],
)
def test_messages_that_are_none_are_refused(messages: Any, what: str) -> None:
    with pytest.raises(InputError, match=what):
        ChatTemplate(TEMPLATE).render(messages)
