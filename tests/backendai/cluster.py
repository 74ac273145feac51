"""The lab as a test sees it: one manager of it, its users, and how to register with them."""

from dataclasses import dataclass
from typing import Any

from backendai_lab.lab import Lab

from meshnode.remote import Kind, Remote, checked

QWEN = "Qwen/Qwen2.5-7B-Instruct"
GEMMA = "google/gemma-3-4b-it"


@dataclass(frozen=True)
class Cluster:
    lab: Lab
    release: str

    @property
    def url(self) -> str:
        return str(self.lab.facts()["managers"][self.release])

    def user(self, name: str) -> dict[str, Any]:
        return dict(self.lab.facts()["users"][name])

    def remote(self, user: str = "alice", **fields: str) -> Remote:
        keys = self.user(user)
        values = {"access_key": keys["access_key"], "key": keys["secret_key"], **fields}
        return checked(Remote(kind=Kind.CLUSTER, name="lab", url=self.url, **values))
