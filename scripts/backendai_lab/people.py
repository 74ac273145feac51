"""Users, key pairs and the rest that a manager must find in its database, as its own fixtures."""

from typing import Any

from backendai_lab.settings import API_SECRET

DOMAIN = "33333333-3333-4333-8333-333333333301"
PROJECT = "11111111-1111-4111-8111-111111111111"
RESOURCE_GROUP = "44444444-4444-4444-8444-444444444401"
VARIANT = "55555555-5555-4555-8555-555555555501"
USERS = {name: f"22222222-2222-4222-8222-22222222220{number}" for number, name in enumerate(("admin", "alice", "bob"), 1)}
ACCESS_KEYS = {"admin": "AKLABADMIN0000000001", "alice": "AKLABALICE0000000001", "bob": "AKLABBOB000000000001"}
SECRET_KEYS = {name: f"lab-{name}-secret-key-000000000000000001" for name in USERS}
BOBS_LIMIT = 30
"""Calls in fifteen minutes."""

Rows = dict[str, Any]


def fixtures(*, new: bool, coordinator_port: int) -> dict[str, Rows]:
    """By file name, in the order in which they must be loaded. `new`: for 26.9, else for 23.09."""
    return {
        "1users": _users(new, coordinator_port),
        "2keypairs": _key_pairs(new),
        **({"3variants": _variants()} if new else _main()),
    }


def _users(new: bool, coordinator_port: int) -> Rows:
    group: Rows = {
        "name": "default", "description": "", "is_active": True, "driver": "static", "driver_opts": {}, "scheduler": "fifo",
        "scheduler_opts": {}, "wsproxy_addr": f"http://127.0.0.1:{coordinator_port}", "wsproxy_api_token": API_SECRET,
    }  # fmt: skip
    domain: Rows = {
        "name": "default", "description": "", "is_active": True, "total_resource_slots": {}, "allowed_vfolder_hosts": {},
        "allowed_docker_registries": ["cr.local"],
    }  # fmt: skip
    project: Rows = {
        "id": PROJECT, "name": "default", "description": "", "is_active": True, "domain_name": "default",
        "resource_policy": "default", "total_resource_slots": {}, "allowed_vfolder_hosts": {},
    }  # fmt: skip
    users = [_user(name) for name in USERS]
    user_policy: Rows = {"name": "default", "max_session_count_per_model_session": 10}
    project_policy: Rows = {"name": "default"}
    if new:
        domain["id"] = DOMAIN
        group |= {"id": RESOURCE_GROUP, "is_default": True}
        project["type"] = "general"
        user_policy |= {"max_vfolder_count": 0, "max_quota_scope_size": -1}
        project_policy |= {"max_vfolder_count": 0, "max_quota_scope_size": -1, "max_network_count": 3}
        users = [{**user, "domain_id": DOMAIN} for user in users]
        groups_of_domains: Rows = {"resource_group_id": RESOURCE_GROUP, "domain_id": DOMAIN}
    else:
        user_policy["max_vfolder_size"] = project_policy["max_vfolder_size"] = -1
        users = [{**user, "main_access_key": None} for user in users]
        groups_of_domains = {"scaling_group": "default", "domain": "default"}
    return {
        "domains": [domain],
        "user_resource_policies": [user_policy],
        "project_resource_policies": [project_policy],
        "groups": [project],
        "scaling_groups": [group],
        "sgroups_for_domains": [groups_of_domains],
        "users": users,
        "association_groups_users": [{"group_id": PROJECT, "user_id": user} for user in USERS.values()],
    }


def _user(name: str) -> Rows:
    return {
        "uuid": USERS[name], "username": name, "email": f"{name}@lab.test", "password": f"lab-{name}-pw1!",
        "need_password_change": False, "full_name": name, "description": "", "status": "active", "status_info": "admin-requested",
        "domain_name": "default", "resource_policy": "default", "role": "superadmin" if name == "admin" else "user",
    }  # fmt: skip


def _key_pairs(new: bool) -> Rows:
    policy: Rows = {
        "name": "default", "default_for_unspecified": "UNLIMITED", "total_resource_slots": {}, "max_session_lifetime": 0,
        "max_concurrent_sessions": 5, "max_containers_per_session": 1, "idle_timeout": 3600, "allowed_vfolder_hosts": {},
        **({"is_default": True} if new else {"max_vfolder_count": 10, "max_vfolder_size": 0}),
    }  # fmt: skip
    pairs = [
        {
            "access_key": ACCESS_KEYS[name], "secret_key": SECRET_KEYS[name], "is_active": True, "resource_policy": "default",
            "rate_limit": BOBS_LIMIT if name == "bob" else 30_000, "num_queries": 0, "is_admin": name == "admin",
            "user": USERS[name], **({"is_default": True} if new else {"user_id": f"{name}@lab.test"}),
        }
        for name in USERS
    ]  # fmt: skip
    return {"keypair_resource_policies": [policy], "keypairs": pairs}


def _variants() -> Rows:
    models = [{"name": "m", "service": {"port": 8000}}]
    variant = {
        "id": VARIANT, "name": "custom", "description": "", "reads_vfolder_config_files": False,
        "default_model_definition": {"models": models},
    }  # fmt: skip
    return {"runtime_variants": [variant]}


def _main() -> dict[str, Rows]:
    users = [{"uuid": USERS[name], "main_access_key": ACCESS_KEYS[name]} for name in USERS]
    return {"3main": {"__mode": "update", "users": users}}
