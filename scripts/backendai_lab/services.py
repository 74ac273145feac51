"""The model services of the lab: what scheduling would have written into the managers' databases, and their circuits.

From then on the manager 26.9.6 itself pushes routes to the app proxy, issues tokens through it, and evicts what is dead. The
manager 23.09.10 shows the same services through the same proxy.
"""

import json
import urllib.request
import uuid
from typing import Any, NamedTuple

from backendai_lab.people import DOMAIN, PROJECT, RESOURCE_GROUP, USERS, VARIANT
from backendai_lab.settings import API_SECRET


class Service(NamedTuple):
    """`replica` is added to the lab's first port of replicas; nothing listens at 89."""

    id: str
    name: str
    owner: str
    is_public: bool
    replica: int
    model: str

    def derived(self, what: str) -> uuid.UUID:
        return uuid.uuid5(uuid.UUID(self.id), what)


_QWEN = "Qwen/Qwen2.5-7B-Instruct"
SERVICES = (
    Service("66666666-6666-4666-8666-666666666601", "qwen-svc", "alice", False, 1, _QWEN),
    Service("66666666-6666-4666-8666-666666666602", "gemma-public", "alice", True, 2, "google/gemma-3-4b-it"),
    Service("66666666-6666-4666-8666-666666666603", "bob-svc", "bob", False, 3, "bob/private-model"),
    Service("66666666-6666-4666-8666-666666666604", "dead-svc", "alice", False, 89, "nobody/nothing"),
    Service("66666666-6666-4666-8666-666666666605", "qwen-spare", "alice", False, 4, _QWEN),
    Service("66666666-6666-4666-8666-666666666606", "demo-svc", "alice", False, 5, ""),
)
"""The last is for a real model: whatever a test starts at its port."""


def register(coordinator: int) -> dict[str, str]:
    """Make circuits for them at the app proxy. Returns their URLs by id."""
    wanted = [
        {
            "deployment_id": each.id,
            "version": "v2",
            "service_name": each.name,
            "tags": {
                "session": {"user_uuid": USERS[each.owner], "project_id": PROJECT, "domain_name": "default"},
                "endpoint": {"id": each.id, "runtime_variant": "custom"},
            },
            "open_to_public": each.is_public,
        }
        for each in SERVICES
    ]
    made = _post(coordinator, "/v2/endpoints/bulk", {"endpoints": wanted})["endpoints"]
    return {each.get("deployment_id") or each["endpoint_id"]: each["url"] for each in made}


def route(coordinator: int, first_port: int) -> None:
    """Tell the app proxy where their replicas are."""
    routes = [
        {
            "deployment_id": each.id,
            "routes": [
                {
                    "session_id": str(each.derived("session")),
                    "route_id": str(each.derived("route")),
                    "kernel_host": "127.0.0.1",
                    "kernel_port": first_port + each.replica,
                }
            ],
        }
        for each in SERVICES
    ]
    _post(coordinator, "/v2/endpoints/bulk/routes", {"endpoints": routes})


def _post(port: int, path: str, body: object) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", "Accept": "application/json", "X-BackendAI-Token": API_SECRET}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.load(answer))


def rows_of_26(service: Service, url: str, first_port: int) -> str:
    """SQL that can be run again: deployment, revision, session, kernel and route, and the RBAC edges of 26.9."""
    i, owner, port = service.id, USERS[service.owner], first_port + service.replica
    session, revision, route_id = (service.derived(what) for what in ("session", "revision", "route"))
    health = "unhealthy" if service.name.startswith("dead") else "healthy"
    ports = json.dumps(
        [{"name": "llm", "protocol": "http", "container_ports": [8000], "host_ports": [port], "is_inference": True}]
    )
    return f"""
insert into endpoints(id,name,created_user,session_owner,replicas,desired_replicas,domain,project,resource_group,lifecycle_stage,
    scaling_state,open_to_public,url,retries,options)
  values('{i}','{service.name}','{owner}','{owner}',1,1,'default','{PROJECT}','default','ready','stable',{service.is_public},
    '{url}',0,'{{}}') on conflict (id) do update set url=excluded.url;
insert into deployment_revisions(id,endpoint,revision_number,resource_group,runtime_variant_id)
  values('{revision}','{i}',1,'default','{VARIANT}') on conflict do nothing;
insert into sessions(id,creation_id,name,session_type,priority,cluster_mode,cluster_size,options,resource_group_id,
    scaling_group_name,domain_name,domain_id,group_id,user_uuid,use_host_network,status,result)
  values('{session}','lab-{service.name}','{service.name}-1','INFERENCE',10,'SINGLE_NODE',1,'{{}}','{RESOURCE_GROUP}','default',
    'default','{DOMAIN}','{PROJECT}','{owner}',false,'RUNNING','UNDEFINED') on conflict do nothing;
insert into kernels(id,session_id,session_type,cluster_mode,cluster_size,cluster_role,cluster_idx,local_rank,cluster_hostname,
    scaling_group,resource_group_id,domain_name,group_id,user_uuid,occupied_shares,repl_in_port,repl_out_port,stdin_port,
    stdout_port,use_host_network,status,result,kernel_host,service_ports)
  values('{session}','{session}','INFERENCE','SINGLE_NODE',1,'main',1,0,'main1','default','{RESOURCE_GROUP}','default',
    '{PROJECT}','{owner}','{{}}',0,0,0,0,false,'RUNNING','UNDEFINED','127.0.0.1','{ports}') on conflict do nothing;
insert into routings(id,endpoint,session,session_owner,domain,project,status,health_status,traffic_ratio,revision,traffic_status,
    sub_status,replica_host,replica_port)
  values('{route_id}','{i}','{session}','{owner}','default','{PROJECT}','running','{health}',1.0,'{revision}','active',null,
    '127.0.0.1',{port})
  on conflict (id) do update set status='running', session=excluded.session, sub_status=null, traffic_status='active',
    health_status=excluded.health_status;
{_edges(i, owner)}"""


def _edges(i: str, owner: str) -> str:
    """A deployment is a member of its owner's and its project's scope, as the manager itself would write it."""
    own = (
        f"(p.entity_type='deployment' and p.entity_id='{i}') or (p.entity_type='user' and p.entity_id='{owner}') "
        f"or (p.entity_type='project' and p.entity_id='{PROJECT}')"
    )
    return f"""
insert into virtual_entities(entity_type,entity_id) values('deployment','{i}') on conflict do nothing;
insert into entity_memberships(virtual_entity_id,member_entity_id)
  select p.id,d.id from virtual_entities d, virtual_entities p where d.entity_type='deployment' and d.entity_id='{i}' and ({own}
    or p.id in (select virtual_entity_id from entity_memberships m join virtual_entities g on g.id=m.member_entity_id
      where g.entity_type='domain' and m.virtual_entity_id<>m.member_entity_id)) on conflict do nothing;
insert into scope_bindings(virtual_entity_id,scope_entity_id)
  select d.id,p.id from virtual_entities d, virtual_entities p
    where d.entity_type='deployment' and d.entity_id='{i}' and ({own}) on conflict do nothing;
"""


_IMAGE = "77777777-7777-4777-8777-777777777701"


def image_of_23(coordinator: int) -> str:
    digest = "0" * 72
    return f"""
update scaling_groups set wsproxy_addr='http://127.0.0.1:{coordinator}', wsproxy_api_token='{API_SECRET}';
insert into images(id,name,image,registry,architecture,config_digest,size_bytes,is_local,type,labels,resources,tag)
  values('{_IMAGE}','cr.local/lab/vllm:1','lab/vllm','cr.local','x86_64','{digest}',1,false,'COMPUTE','{{}}','{{}}','1')
  on conflict do nothing;
"""


def rows_of_23(service: Service, url: str) -> str:
    i, owner = service.id, USERS[service.owner]
    health = "unhealthy" if service.name.startswith("dead") else "healthy"
    return f"""
insert into endpoints(id,name,created_user,session_owner,desired_session_count,image,domain,project,resource_group,
    lifecycle_stage,resource_slots,url,open_to_public)
  values('{i}','{service.name}','{owner}','{owner}',1,'{_IMAGE}','default','{PROJECT}','default','created','{{}}','{url}',
    {service.is_public}) on conflict (id) do update set url=excluded.url;
insert into routings(id,endpoint,session_owner,domain,project,status,traffic_ratio)
  values('{service.derived("route")}','{i}','{owner}','default','{PROJECT}','{health}',1.0) on conflict do nothing;
"""
