"""The bucket policies of docs/sharing.md, as far as moto enforces them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from embedcache.remotes.opening import open_remote
from embedcache.remotes.remote import Denied

POLICIES = re.findall(
    r"```json\n(.*?)```",
    (Path(__file__).parents[2] / "docs" / "sharing.md").read_text(),
    flags=re.DOTALL,
)


def enforced(policy: str) -> str:
    """Without what moto does not enforce: conditions of an Allow, and any Deny with one."""
    kept = []
    for statement in json.loads(policy)["Statement"]:
        if "Condition" in statement and statement["Effect"] == "Deny":
            continue
        kept.append({name: value for name, value in statement.items() if name != "Condition"})
    return json.dumps({"Version": "2012-10-17", "Statement": kept})


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[str, str]]]:
    """Access keys of a reading and a writing member, at a server that enforces policies."""
    pytest.importorskip("moto.server")
    boto3: Any = pytest.importorskip("boto3")
    from moto import settings
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    bucket = boto3.client("s3", region_name="us-east-1", endpoint_url=url)
    bucket.create_bucket(Bucket="our-bucket")
    seen = ("faces/spaces/a", "faces/face-spaces/a", "faces/faces/a", "faces/photos/a", "other/a")
    for key in seen:
        bucket.put_object(Bucket="our-bucket", Key=key, Body=b"x")
    iam = boto3.client("iam", region_name="us-east-1", endpoint_url=url)
    keys = {}
    for name, policies in (("reader", POLICIES[:1]), ("writer", POLICIES)):
        user = f"{name}-{uuid4().hex}"  # moto keeps users as long as this process
        iam.create_user(UserName=user)
        for number, policy in enumerate(policies):
            document = enforced(policy)
            iam.put_user_policy(UserName=user, PolicyName=f"p{number}", PolicyDocument=document)
        made = iam.create_access_key(UserName=user)["AccessKey"]
        keys[name] = (made["AccessKeyId"], made["SecretAccessKey"])
    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    yield keys
    server.stop()


@pytest.mark.parametrize("who", ["reader", "writer"])
def test_members_can_do_what_their_policies_say(
    who: str, members: dict[str, tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", members[who][0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", members[who][1])
    ours, others = open_remote("s3://our-bucket/faces"), open_remote("s3://our-bucket/other")
    assert [entry.key for entry in ours.list("spaces/")] == ["spaces/a"]
    assert b"".join(ours.blocks("spaces/a")) == b"x"
    for key in ("face-spaces/a", "faces/a", "photos/a"):
        with pytest.raises(Denied):
            b"".join(ours.blocks(key))
    with pytest.raises(Denied):
        b"".join(others.blocks("a"))
    with pytest.raises(Denied):
        others.write("b", lambda: iter([b"y"]), size=1)
    with pytest.raises(Denied):
        ours.delete("spaces/a")
    if who == "reader":
        with pytest.raises(Denied):
            ours.write("spaces/b", lambda: iter([b"y"]), size=1)
    else:
        ours.write("spaces/b", lambda: iter([b"y"]), size=1)
        assert b"".join(ours.blocks("spaces/b")) == b"y"
