//! Values that are small to write and large to read: refused while they are made, and nothing ordinary is.

use ollmlx_proto::{FailureKind, UnixSeconds};

use super::tests::{chat, go, jinja};

/// What a template renders for one short message, or why it doesn't.
fn rendered(template: &str) -> Result<String, String> {
    let result = jinja(template).render(&chat(&[("user", "hello")]), UnixSeconds(1_700_000_000));
    result.map(|rendered| rendered.text).map_err(|failure| {
        assert_eq!(failure.kind, FailureKind::TemplateFailed, "{template}");
        failure.public
    })
}

#[track_caller]
fn refused(template: &str, why: &str) {
    let head: String = template.chars().take(100).collect();
    let refusal = rendered(template).expect_err(&head);
    assert!(refusal.contains(why), "{head}: {refusal}");
}

/// By its size, or by what it cost to see that.
#[track_caller]
fn refused_somehow(template: &str) {
    let head: String = template.chars().take(100).collect();
    let refusal = rendered(template).expect_err(&head);
    let whys = [TOO_LARGE, TOO_MANY_STEPS, "recursion limit"];
    assert!(whys.iter().any(|why| refusal.contains(why)), "{head}: {refusal}");
}

const TOO_LARGE: &str = "a value is too large";
const TOO_MANY_STEPS: &str = "takes too many steps";

#[test]
fn a_list_that_doubles_is_refused_whoever_would_read_it() {
    let doubles =
        |name: &str| format!("{{% set {name} = [1] %}}{}", format!("{{% set {name} = [{name}, {name}] %}}").repeat(60));
    let both = format!("{}{}", doubles("x"), doubles("y"));
    for reader in [
        "x",
        "x ~ ''",
        "x | string",
        "[x] | join",
        "''.join([x])",
        "x == y",
        "x != y",
        "x < y",
        "0 < x < y",
        "x in [y]",
        "[x, y] | sort",
        "[x, y] | unique",
        "'%s' | format(x)",
        "'{}'.format(x)",
        "x | tojson",
        "x is eq y",
        "x | pprint",
        "raise_exception(x)",
        "{x: 1}",
        "{'a': 1}[x]",
        "x | length",
    ] {
        refused(&format!("{both}{{{{ {reader} }}}}"), TOO_LARGE);
    }
}

#[test]
fn however_it_doubles() {
    for step in [
        "{'a': x, 'b': x}",
        "(x, x)",
        "dict(a=x, b=x)",
        "x + x + [x]",
        "[x] * 2",
        "[x] * 1000",
        "[x] | batch(9, x) | list",
        "[x, x] | list",
        "[x] | chain([x]) | list",
        "[x, [x]] | reverse | list",
    ] {
        let template = format!("{{% set x = [1] %}}{}{{{{ x }}}}", format!("{{% set x = {step} %}}").repeat(80));
        refused_somehow(&template);
    }
    refused_somehow(
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    );
    refused_somehow("{% macro m(x) %}{{ m([x, x]) }}{% endmacro %}{{ m([1]) }}");
    let nested = "{% for x in [[x, x]] %}".repeat(40);
    refused_somehow(&format!("{{% set x = [1] %}}{nested}{{{{ x }}}}{}", "{% endfor %}".repeat(40)));
    let with = "{% with x = [x, x] %}".repeat(40);
    refused_somehow(&format!("{{% set x = [1] %}}{with}{{{{ x }}}}{}", "{% endwith %}".repeat(40)));
}

#[test]
fn what_nests_without_end_is_refused() {
    let nests = "{% set n = namespace(x=0) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}";
    refused(nests, "nested too deeply");
}

#[test]
fn no_value_holds_itself() {
    for assignment in [
        "{% set n.x = n %}",
        "{% set n.x = [n] %}",
        "{% set n.x = {'a': [n]} %}",
        "{% set n.x = (1, n) %}",
        "{% set o.x = n %}{% set n.x = o %}",
        "{% set n.x = namespace(a=n) %}",
        "{% for i in [n] %}{% set n.x = loop %}{% endfor %}",
        "{% for i in [n] %}{% set n.x = [loop] %}{% endfor %}",
        "{% set n.x = [n.items()] %}",
    ] {
        let template = format!("{{% set n = namespace() %}}{{% set o = namespace() %}}{assignment}");
        refused(&format!("{template}{{{{ n }}}}"), "a namespace can't hold");
        refused(&format!("{template}{{{{ n == o }}}}"), "a namespace can't hold");
    }
    let listed = rendered("{% set n = namespace(a=1) %}{% set n.x = n.items() %}{{ n.x | length }}");
    assert!(listed.is_ok(), "what is iterated over becomes a list: {listed:?}");
}

#[test]
fn texts_are_paid_for_before_they_are_made() {
    for template in [
        "{{ '%1000000000s' | format('x') }}",
        "{{ '{:>1000000000}'.format('x') }}",
        "{{ '{:1000000000d}'.format(1) }}",
        "{{ 'a' | indent(10**9, true) }}",
        "{{ 'a' * 10**9 }}",
        "{{ ('a' * 10**7) | replace('a', 'b' * 10**6) }}",
        "{{ ('a' * 10**7).replace('a', 'b' * 10**6) }}",
        "{{ ('b' * 10**6) | join('a' * 10**6) }}",
        "{{ ('b' * 10**6).join('a' * 10**6) }}",
        "{{ ('{0}' * 10**5).format('a' * 10**6) }}",
        "{{ ('%(a)s' * 10**5) | format(a='a' * 10**6) }}",
        "{% set s = [('a' * 10**6)] * 10**4 %}{{ s ~ '' }}",
    ] {
        let refusal = rendered(template).expect_err(template);
        assert!(refusal.contains(TOO_MANY_STEPS) || refusal.contains(TOO_LARGE), "{template}: {refusal}");
    }
}

#[test]
fn what_reads_is_paid_for_each_time() {
    for body in [
        "{% if s == t %}{% endif %}",
        "{% if s in [t] %}{% endif %}",
        "{% if s is eq t %}{% endif %}",
        "{{ s.find('b') }}",
        "{{ s.strip('b' * 10**5) }}",
        "{{ s | trim('b' * 10**5) }}",
        "{{ s.split('a') | length }}",
        "{{ s | length }}{{ s | upper | length }}",
        "{% if [s] == [t] %}{% endif %}",
        "{{ [s] | select('eq', t) | list | length }}",
        "{% if loop.changed([s, i]) %}{% endif %}",
    ] {
        let set = "{% set s = 'a' * 10**6 %}{% set t = 'a' * 10**6 %}";
        refused(&format!("{set}{{% for i in range(99999) %}}{body}{{% endfor %}}"), TOO_MANY_STEPS);
    }
}

#[test]
fn what_templates_do_goes_on_as_before() {
    for (template, text) in [
        (
            "{% set n = namespace(m=[]) %}{% for m in messages %}{% set n.m = n.m + [m] %}{% endfor %}{{ n.m[0].content }}",
            "hello",
        ),
        (
            "{% set n = namespace(a=1, b={'c': [1, 2]}) %}{% set n.a = n.a + 1 %}{% set n.b = n.b.c %}{{ n.a }}{{ n.b }}",
            "2[1, 2]",
        ),
        (
            "{{ 'role' in messages[0] }}{{ 'x' in messages[0] }}{{ messages[0].role in ['user', 'tool'] }}{{ 'ell' in 'hello' }}",
            "TrueFalseTrueTrue",
        ),
        (
            "{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{% if (none or 'a') == 'a' %}y{% endif %}{{ 'a' == (none or 'a') }}",
            "TrueFalseyTrue",
        ),
        ("{{ 'a' ~ 1 ~ none ~ [1] }}{{ [1] + [2] }}{{ [0] * 3 }}{{ 'ab' * 2 }}", "a1None[1][1, 2][0, 0, 0]abab"),
        (
            "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | map(attribute='role') | join(',') }}",
            "1user",
        ),
        (
            "{{ [3, 1, 2] | sort(reverse=true) }}{{ ['b', 'a'] | map('upper') | join }}{{ {'b': 1, 'a': 2} | dictsort }}",
            "[3, 2, 1]BA[('a', 2), ('b', 1)]",
        ),
        ("{% macro m(a, b='x') %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(2, b='y') }}", "1x2y"),
        (
            "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}a{% endcall %}{% filter upper %}b{% endfilter %}",
            "<a>B",
        ),
        ("{% for i in [[1], [2, [3]]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}", "123"),
        (
            "{% for i in [1, 1, 2] %}{{ loop.changed(i) }}{{ loop.cycle('a', 'b') }}{% else %}x{% endfor %}",
            "TrueaFalsebTruea",
        ),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        (
            "{{ 'a,b'.split(',')[-1] }}{{ ' a '.strip() }}{{ 'abc'.replace('b', 'x') }}{{ {'a': 1}.get('b', 2) }}{{ '{} {}'.format(1, 'b') }}",
            "baaxc21 b",
        ),
        (
            "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ [1, 2] | tojson(indent=1) }}{{ 'x' is string }}{{ 3 is in([3]) }}",
            "a1[\n 1,\n 2\n]TrueTrue",
        ),
        (
            "{{ '%s-%05d' | format('a', 7) }}{{ 'a' if false }}{{ x is defined }}{{ (x or y) is none }}{{ [1, 2, 3][1:] }}",
            "a-00007FalseFalse[2, 3]",
        ),
        ("{% block b %}{% set x = [1, 2] %}{{ x }}{% endblock %}{% set y %}a{% endset %}{{ y }}", "[1, 2]a"),
    ] {
        assert_eq!(rendered(template).as_deref(), Ok(text), "{template}");
    }
}

#[test]
fn go_templates_pay_for_what_they_print_and_compare() {
    let m = "{{ if .Messages }}{{ end }}";
    let many = format!("{m}{{{{ $a := print {} }}}}", ".Messages ".repeat(50_000));
    let printed = format!("{m}{{{{ printf \"{}\" {} }}}}", "%v".repeat(50_000), ".Messages ".repeat(50_000));
    let compared = format!(
        "{m}{{{{ $a := (index .Messages 0).Content }}}}{}",
        "{{ range .Messages }}{{ range $.Messages }}{{ range $.Messages }}{{ if eq $a $a $a $a $a $a $a $a }}{{ end }}{{ end }}{{ end }}{{ end }}"
    );
    let long = "a".repeat(1 << 20);
    let turns: Vec<_> =
        (0..60).map(|turn| (["user", "assistant"][turn % 2], if turn == 0 { long.as_str() } else { "b" })).collect();
    for template in [many, printed, compared] {
        let result = go(&template).render(&chat(&turns), UnixSeconds(0));
        let head: String = template.chars().take(80).collect();
        let failure = result.expect_err(&head);
        assert_eq!(failure.kind, FailureKind::TemplateFailed, "{head}");
        assert!(failure.public.contains("too much text"), "{head}: {}", failure.public);
    }
}
