"""The page and the clients behind a proxy that serves the service under a path."""

import re
from pathlib import Path

import httpx
import pytest

from api_browser import chromium
from api_nginx import nginx
from api_serving import serving
from arwkv_store import open_dataset
from store_examples import write_example_dataset

OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


@pytest.mark.parametrize(
    "kept", [pytest.param(False, id="removed"), pytest.param(True, id="kept", marks=pytest.mark.slow)]
)
def test_page_and_clients_work_behind_a_path_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """The proxy removes the prefix from what it passes on, or keeps it and tells the caller's address."""
    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "downloads"))
    locations = re.findall(r"^```nginx\n(.*?)^```", OPERATIONS, re.M | re.S)
    location = locations[kept]
    write_example_dataset(tmp_path / "root" / "größe")
    flags = ["--path-prefix", "/arwkv", "--trusted-proxy", "127.0.0.1"] if kept else []
    with (
        serving("--root", str(tmp_path / "root"), *flags, cache=tmp_path / "cache") as (url, _),
        nginx(tmp_path / "nginx", location.replace("http://127.0.0.1:8000", url)) as proxy,
        chromium() as browser,
    ):
        site = f"{proxy}/arwkv"
        assert len(open_dataset(f"{site}/v1/datasets/größe")) == 10
        browser.open(f"{site}/", "document.querySelector('tbody a')")
        browser.do("document.querySelector('tbody a').click()")
        browser.wait("document.querySelector('section tbody tr') && document.querySelector('.uri')")
        assert f"{site}/v1/datasets/gr%C3%B6%C3%9Fe" in browser.text(".uri")
        browser.do("document.querySelector('[aria-label=\"Verify part 0 now\"]').click()")
        browser.wait("/\\d\\d:\\d\\d/.test(document.querySelector('[aria-label=\"Verify part 0 now\"]').innerText)")
        browser.do("document.querySelector('nav a[href=docs]').click()")
        browser.wait("document.querySelector('.operation')")
        browser.do("document.querySelector('.brand').click()")
        browser.wait("document.querySelector('tbody a')")
        assert browser.faults == []
        assert httpx.get(f"{proxy}/arwkv", follow_redirects=True).url.path == "/arwkv/"
        assert all(address.startswith((f"{site}/", "about:", "data:")) for address in browser.asked)
