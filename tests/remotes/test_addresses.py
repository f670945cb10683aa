"""URLs and endpoints that are mistyped, unreadable, or hold a credential."""

from pathlib import Path

import pytest

from embedcache.errors import RemoteError
from embedcache.remotes.opening import open_remote
from embedcache.sharing.connecting import require_place
from embedcache.sharing.share import push
from tests.remotes.servers import Proxy, free_port, two_segments, unhurried


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/x",
        "s3://bucket/x?X-Amz-Signature=secret",
        "ssh://ben:secret@host/x",
        "az://container@account/secret",
        "s3://bucket/x;AWSAccessKeyId=secret",
        "https://bucket/x?sig=secret",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RemoteError, match="Leave it out") as caught:
        open_remote(url)
    assert "secret" not in str(caught.value)


def test_a_credential_in_an_endpoint_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    for name, value in (
        ("AWS_ENDPOINT_URL", "http://ada:secret1@127.0.0.1:9"),
        ("AWS_ACCESS_KEY_ID", "secret2"),
        ("AWS_SECRET_ACCESS_KEY", "secret3"),
        ("AWS_SESSION_TOKEN", "secret4"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(RemoteError) as caught:
        push(two_segments(tmp_path / "a"), unhurried("s3://team/x", monkeypatch))
    assert "secret" not in str(caught.value)
    files = (path for path in tmp_path.rglob("*") if path.is_file())
    assert not any(b"secret" in path.read_bytes() for path in files)


def test_an_unknown_scheme_is_answered_with_the_known_ones() -> None:
    with pytest.raises(RemoteError, match=r"cannot have the scheme ftp://\. Name a folder, s3://"):
        open_remote("ftp://host/x")


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("s3:/bucket/x", r"did you mean s3://bucket/x\?"),
        ("gs:bucket/x", r"did you mean gs://bucket/x\?"),
        ("s3:/key:secret@bucket/x?sig=secret", r"did you mean s3://bucket/x\?"),
        ("nas:/srv/faces", "a URL has // after its scheme"),
        ("root@host:/srv/x", r"did you mean ssh://root@host/srv/x\?"),
        ("file://host/srv/x", "file:///host/srv/x or ssh://host/srv/x"),
        ("none", "extract --remote none"),
        ("ssh://root@host:notaport/x", r"the port in ssh://host:\.\.\. is not a number"),
        ("ssh://root@host:99999/x", "the port in"),
        ("ssh://[::1/x", "cannot be read"),
        ("s3:///x", "has no host or bucket"),
        ("~nobody-of-this-name/x", "no such user"),
    ],
)
def test_a_mistyped_address_is_refused_with_a_hint(address: str, hint: str) -> None:
    with pytest.raises(RemoteError, match=hint) as caught:
        open_remote(address)
    assert "secret" not in str(caught.value)


def test_a_folder_may_begin_with_the_home_or_have_an_odd_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_remote("~/shared").name == f"{tmp_path}/shared"
    assert open_remote(f"file://localhost{tmp_path}/a").name == f"{tmp_path}/a"
    assert open_remote("./none").name == "none"
    assert open_remote("./s3:/x").name == "s3:/x"


@pytest.mark.parametrize(
    ("url", "variable", "value"),
    [
        ("s3://b/x", "AWS_ENDPOINT_URL", "127.0.0.1:45871"),
        ("s3://b/x", "AWS_ENDPOINT_URL", "http://127.0.0.1:99999"),
        ("s3://b/x", "AWS_ENDPOINT_URL", "http://a b"),
        ("s3://b/x", "AWS_ENDPOINT_URL_S3", "minio"),
        ("s3://b/x", "AWS_ENDPOINT", "http://"),
        ("s3://b/x", "AWS_REGION", "127.0.0.1:9"),
        ("gs://b/x", "GOOGLE_BASE_URL", "localhost:9"),
        ("az://b/x", "AZURE_STORAGE_ENDPOINT", "localhost:9"),
    ],
)
def test_a_variable_at_which_the_library_would_panic_is_refused(
    url: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setenv(variable, value)
    with pytest.raises(RemoteError, match=f"{variable} must be"):
        open_remote(url)


def test_a_bucket_or_folder_that_is_not_there_is_found_by_asking_once(
    s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    require_place(f"s3://team/{tmp_path.name}")
    for place, message in (("s3://taem/x", "no bucket"), (f"{tmp_path}/taem/x", "no folder")):
        with pytest.raises(RemoteError, match=message):
            require_place(place)
    require_place(str(tmp_path / "new"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(RemoteError, match="neither empty nor a shared copy"):
        require_place(str(tmp_path / "full"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    require_place("s3://taem/x")  # nobody answers, which says nothing of the name
