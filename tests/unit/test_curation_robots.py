"""robots.txt read as RFC 9309 specifies; its own examples among them."""

from __future__ import annotations

import time

import pytest

from altdiffusion import urls
from altdiffusion.curation.web.robots import parse, product_token

# RFC 9309, 5.1
SIMPLE = """
User-agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-agent: barbot
User-agent: bazbot
Disallow: /example/page.html

User-agent: quxbot
"""


@pytest.mark.parametrize(
    ("agent", "path", "allowed"),
    [
        ("OtherBot/1.0 (x)", "/a/picture.gif", False),
        ("OtherBot/1.0 (x)", "/a/picture.gif?size=1", True),
        ("OtherBot/1.0 (x)", "/example/page.html", False),
        ("OtherBot/1.0 (x)", "/publications/picture.gif", True),  # 14 octets against 6
        ("OtherBot/1.0 (x)", "/publications", True),
        ("FooBot/2.1", "/example/page.html", True),
        ("FooBot/2.1", "/example/allowed.gif", True),
        ("FooBot/2.1", "/publications/", False),
        ("barbot", "/example/page.html", False),
        ("BAZBOT/0 (+http://b.example)", "/example/page.html", False),
        ("bazbot", "/example/picture.gif", True),
        ("quxbot", "/example/page.html", True),  # a group without rules allows everything
        ("foobotx", "/publications/", True),  # a token is compared whole
        ("foobot", "/robots.txt", True),
    ],
)
def test_the_simple_example(agent: str, path: str, allowed: bool) -> None:
    assert parse(SIMPLE, agent).allows(path) is allowed


def test_the_longest_match_wins() -> None:
    text = "User-Agent: foobot\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif\n"  # RFC 9309, 5.2
    robots = parse(text, "foobot")
    assert not robots.allows("/example/page/disallowed.gif")
    assert robots.allows("/example/page/allowed.gif")
    assert parse("User-agent: *\nDisallow: /page\nAllow: /page", "x").allows("/page")  # of equals, the one that allows


def target_path(url: str) -> str:
    """Return the path as it is requested."""
    target = urls.parse(url)
    assert target is not None
    return target.path


@pytest.mark.parametrize(
    ("rule", "path"),  # RFC 9309, 2.2.2
    [
        ("/foo/bar?baz=quz", "/foo/bar?baz=quz"),
        ("/foo/bar?baz=https://foo.bar", "/foo/bar?baz=https%3A%2F%2Ffoo.bar"),
        ("/foo/bar?baz=https%3a%2F%2ffoo.bar", "/foo/bar?baz=https://foo.bar"),
        ("/foo/bar/ツ", "/foo/bar/%E3%83%84"),
        ("/foo/bar/%E3%83%84", "/foo/bar/%e3%83%84"),
        ("/foo/bar/%62%61%7A", "/foo/bar/baz"),
        ("/path/file-with-a-%2A.html", "/path/file-with-a-*.html"),
        ("/path/foo-%24", "/path/foo-$"),
        ("/a b", "/a%20b"),
        ("/foo?q='x'", target_path("http://a.example/foo?q='x'")),
        ("/foo/{x}|^/ü", target_path("http://a.example/foo/{x}|^/ü")),
    ],
)
def test_octets_are_compared_however_they_are_written(rule: str, path: str) -> None:
    robots = parse(f"User-agent: *\nDisallow: {rule}", "x")
    assert not robots.allows(path)
    assert robots.allows("/foo/other")


@pytest.mark.parametrize(
    ("rule", "path", "matches"),
    [
        ("/", "/anything", True),
        ("/fish", "/fish.html", True),
        ("/fish", "/Fish", False),
        ("/fish", "/a/fish", False),
        ("/fish/", "/fish", False),
        ("/*.php", "/a/b.php?c", True),
        ("/*.php$", "/a/b.php?c", False),
        ("/*.php$", "/a.php/b.php", True),
        ("/fish*.php", "/fishheads/catfish.php", True),
        ("/fish*.php", "/Fish.PHP", False),
        ("/a*b*c$", "/axxbxxc", True),
        ("/a*b*c$", "/axxbxx", False),
        ("/ab*ba$", "/aba", False),  # the two parts must not overlap
        ("/*", "/", True),
        ("*/hidden", "/a/hidden/b", True),
        ("/a$b", "/a$b", True),  # only the last $ is an end
        ("/x$", "/x", True),
        ("/x$", "/xy", False),
        ("", "/", False),
        ("hidden", "/hidden", False),  # no path
    ],
)
def test_wildcards(rule: str, path: str, matches: bool) -> None:
    assert parse(f"User-agent: *\nDisallow: {rule}", "x").allows(path) is not matches


def test_groups_of_one_agent_are_one_and_other_lines_do_not_end_a_group() -> None:
    text = (
        "\ufeffuser-agent : OurBot/1.0\r\nSitemap: http://x.example/s.xml\r\nUser-Agent: other\r\n"
        "# comment\r\nDisallow: /a # because\r\n\r\nUser-agent: *\rDisallow: /\rUSER-AGENT: ourbot\rdisallow: /b"
    )
    robots = parse(text, "OurBot/2 (mail@example.org)")
    assert not robots.allows("/a/x") and not robots.allows("/b") and robots.allows("/c")
    assert not parse(text, "other").allows("/a") and parse(text, "other").allows("/b")
    assert not parse(text, "unnamed").allows("/c")


def test_a_crawl_delay_is_read_for_our_group_and_ends_none() -> None:
    text = "User-agent: us\nCrawl-delay: 2.5\nUser-agent: them\nDisallow: /x\n\nUser-agent: *\nCrawl-delay: 9"
    assert parse(text, "us").crawl_delay_s == 2.5
    assert not parse(text, "us").allows("/x")
    assert parse(text, "anybody").crawl_delay_s == 9
    assert parse("User-agent: *\nCrawl-delay: soon\nCrawl-delay: -1\nCrawl-delay: inf", "x").crawl_delay_s is None


@pytest.mark.parametrize(
    "text", ["", "<!doctype html><title>404</title>", "Disallow: /", "User-agent: *", "\0\xff:::", "User-agent *"]
)
def test_what_is_not_a_rule_forbids_nothing(text: str) -> None:
    assert parse(text, "x").allows("/a")


def test_an_agents_token() -> None:
    assert product_token("AltDiffusionPlatform/0.1 (dataset curation)") == "altdiffusionplatform"
    assert product_token("My-Bot_x y") == "my-bot_x" and product_token("42") == ""
    assert not parse("User-agent: *\nDisallow: /", "42").allows("/")


def test_hostile_patterns_cost_little() -> None:
    many = "User-agent: *\n" + "".join(f"Disallow: /{'*a' * 50}{number}$\n" for number in range(3000))
    robots = parse(many, "x")
    start = time.process_time()
    assert robots.allows("/" + "a" * 8000)
    assert time.process_time() - start < 1.0
