"""The manifests: valid by Kubernetes' own schemas, true to each other, and with a script that does
what it says.

usage: check.py [BINARY]

With BINARY the configuration inside the manifests is loaded by Portcullis itself, and the tree that
the init container would write is what the script merges. Run by check.sh, which has the schemas.
"""

import os
import stat
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import kubernetes_validate
import yaml

HERE = Path(__file__).parent
# The oldest release that is still supported, and the newest that the schemas know.
VERSIONS = ["1.32", "1.37"]
# Made by the operator, not by us; README.md says how.
OPERATORS = {("Secret", "portcullis-tls"), ("ConfigMap", "portcullis-ca")}


def main(binary):
    documents = [d for f in sorted(HERE.glob("*.yaml")) for d in yaml.safe_load_all(f.read_text())]
    for document in documents:
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
    say(f"{len(documents)} objects are valid for {' and '.join(VERSIONS)}")

    objects = {(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]): d
               for d in documents}
    check_references(objects)
    say("names, labels, ports and volumes agree")
    check_proxy(objects)
    say("the proxy's pod is locked down, probed and given its time to stop")
    check_nodes(objects)
    say("the nodes' side leaves the registries of its own images alone")
    text = objects["ConfigMap", "portcullis", "portcullis"]["data"]["portcullis.toml"]
    script = objects["ConfigMap", "portcullis-nodes", "portcullis-install"]["data"]["install.sh"]
    with tempfile.TemporaryDirectory() as work:
        run_script(script, Path(work), binary, text)


def check_references(objects):
    for (kind, namespace, name), document in objects.items():
        where = f"{kind} {name}"
        if kind not in ("Namespace", "ValidatingWebhookConfiguration"):
            expect(("Namespace", None, namespace) in objects, f"{where}: no namespace {namespace}")
        pod = pod_of(document)
        if not pod:
            continue
        labels = document["spec"]["template"]["metadata"]["labels"]
        selector = document["spec"]["selector"]["matchLabels"]
        expect(selector.items() <= labels.items(), f"{where}: selects other pods")
        volumes = {v["name"]: v for v in pod["volumes"]}
        claims = {c["metadata"]["name"] for c in document["spec"].get("volumeClaimTemplates", [])}
        for container in containers(pod):
            for mount in container["volumeMounts"]:
                expect(mount["name"] in volumes.keys() | claims, f"{where}: volume {mount['name']}")
        for volume in volumes.values():
            for kind_, key, field in [("ConfigMap", "configMap", "name"),
                                      ("Secret", "secret", "secretName")]:
                if key in volume:
                    wanted = volume[key][field]
                    known = (kind_, namespace, wanted) in objects or (kind_, wanted) in OPERATORS
                    expect(known, f"{where}: no {kind_} {wanted}")

    proxy = objects["StatefulSet", "portcullis", "portcullis"]
    labels = proxy["spec"]["template"]["metadata"]["labels"]
    ports = {p["name"]: p["containerPort"] for p in pod_of(proxy)["containers"][0]["ports"]}
    for service in ["portcullis", "portcullis-admission", proxy["spec"]["serviceName"]]:
        spec = objects["Service", "portcullis", service]["spec"]
        expect(spec["selector"].items() <= labels.items(), f"Service {service}: selects others")
        expect(all(p["targetPort"] in ports for p in spec["ports"]), f"Service {service}: ports")
    for kind, field in [("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")]:
        spec = objects[kind, "portcullis", "portcullis"]["spec"]
        expect(spec[field]["matchLabels"].items() <= labels.items(), f"{kind}: selects others")
    (webhook,) = objects["ValidatingWebhookConfiguration", None, "portcullis"]["webhooks"]
    service = webhook["clientConfig"]["service"]
    (port,) = objects["Service", service["namespace"], service["name"]]["spec"]["ports"]
    # An API server that is not told a port takes 443.
    expect((service["path"], port["port"]) == ("/admission", 443), "the webhook asks elsewhere")
    (exempt,) = webhook["namespaceSelector"]["matchExpressions"]
    own = {namespace for _, namespace, _ in objects if namespace}
    expect(own <= set(exempt["values"]), "the proxy needs itself to start")
    policy = objects["NetworkPolicy", "portcullis", "portcullis"]["spec"]
    allowed = {p["port"] for rule in policy["ingress"] for p in rule["ports"]}
    expect(allowed == set(ports.values()), "NetworkPolicy: not the ports of the pod")


def check_proxy(objects):
    document = objects["StatefulSet", "portcullis", "portcullis"]
    pod = pod_of(document)
    security = pod["securityContext"]
    expect(security["runAsNonRoot"] and security["runAsUser"] == 65532, "the user")
    expect(security["fsGroup"] == 65532, "the volume's group")
    expect(security["seccompProfile"]["type"] == "RuntimeDefault", "seccomp")
    expect(pod["automountServiceAccountToken"] is False, "a token that nobody needs")
    expect(pod["terminationGracePeriodSeconds"] >= 75, "time to stop")
    (container,) = pod["containers"]
    for volume in pod["volumes"]:
        mode = volume.get("secret", {}).get("defaultMode", 0)
        expect(mode & stat.S_IRWXO == 0, f"volume {volume['name']} is readable for everybody")
    locked(container)
    mounts = {m["mountPath"] for m in container["volumeMounts"]}
    config = tomllib.loads(
        objects["ConfigMap", "portcullis", "portcullis"]["data"]["portcullis.toml"])
    server = config["server"]
    expect(config["store"]["path"] in mounts, "the store is not on its volume")
    expect(str(Path(server["tls"]["key"]).parent) in mounts, "the key is not where it is mounted")
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    expect(server["listen"] == f"0.0.0.0:{ports['registry']}", "listens elsewhere")
    admission = config["admission"]["listen"]
    expect(admission == f"0.0.0.0:{ports['admission']}", "admission is elsewhere")
    expect(server["metrics"] == f"0.0.0.0:{ports['metrics']}", "metrics are elsewhere")
    for probe, path in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz"),
                        ("startupProbe", "/healthz")]:
        get = container[probe]["httpGet"]
        expect((get["path"], get["scheme"]) == (path, "HTTPS"), probe)


def check_nodes(objects):
    document = objects["DaemonSet", "portcullis-nodes", "portcullis-nodes"]
    pod = pod_of(document)
    expect({"operator": "Exists"} in pod["tolerations"], "tainted nodes would go round the proxy")
    for container in containers(pod):
        locked(container)
    (install,) = pod["containers"]
    skip = {e["name"]: e["value"] for e in install["env"]}["SKIP"].split()
    proxy = pod_of(objects["StatefulSet", "portcullis", "portcullis"])
    for container in [*containers(pod), *containers(proxy)]:
        registry = container["image"].split("/")[0]
        expect(registry in skip, f"{registry} holds our own image and is not in SKIP")
    expect("mcr.microsoft.com" in skip, "AKS writes mcr.microsoft.com itself")
    texts = {objects["ConfigMap", namespace, "portcullis"]["data"]["portcullis.toml"]
             for namespace in ["portcullis", "portcullis-nodes"]}
    expect(len(texts) == 1, "10-config.yaml and 40-nodes.yaml hold different configurations")


def locked(container):
    security = container["securityContext"]
    expect(security["allowPrivilegeEscalation"] is False, f"{container['name']}: escalation")
    expect(security["readOnlyRootFilesystem"] is True, f"{container['name']}: writable root")
    expect(security["capabilities"] == {"drop": ["ALL"]}, f"{container['name']}: capabilities")


def run_script(script, work, binary, text):
    """The merge, on a tree and a node's directory of our own making."""
    tree, node = work / "tree", work / "node"
    if binary:
        (work / "portcullis.toml").write_text(text)
        (work / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
        subprocess.run([binary, "nodes", "hosts", "--config", work / "portcullis.toml",
                        "--ca", work / "ca.crt", "--out", tree], check=True, cwd=work)
        expect((tree / "k8s.gcr.io/hosts.toml").exists(), "no file for a refused registry")
        say("Portcullis reads the configuration and writes the nodes' files from it")
    put(tree / "portcullis-ca.crt", "certificate\n")
    put(tree / "docker.io/hosts.toml", "# ours\none\n")
    put(tree / "quay.io/hosts.toml", "# ours\none\n")
    put(tree / "mcr.microsoft.com/hosts.toml", "# ours\n")
    put(tree / "registry.corp.example/hosts.toml", "# ours\n")
    put(node / "portcullis-ca.crt", "last year's certificate\n")
    put(node / "mcr.microsoft.com/hosts.toml", "theirs\n")
    put(node / "quay.io/hosts.toml", "theirs\n")
    put(node / "gone.example/hosts.toml", "old\n")
    put(work / "install.sh", script)

    def run():
        environment = {**os.environ, "TREE": str(tree), "CERTS_D": str(node),
                       "SKIP": "registry.corp.example mcr.microsoft.com"}
        return subprocess.run(["sh", work / "install.sh"], env=environment, check=True,
                              capture_output=True, text=True).stdout

    def content(registry):
        return (node / registry / "hosts.toml").read_text()

    said = run()
    expect(content("docker.io").endswith("one\n"), "a new file was not written")
    expect((node / "portcullis-ca.crt").read_text() == "certificate\n", "the old CA is still there")
    expect(content("quay.io") == "theirs\n", "somebody else's file was replaced")
    expect("left alone" in said and "quay.io" in said, "and nobody was told")
    expect(content("mcr.microsoft.com") == "theirs\n", "mcr.microsoft.com was touched")
    expect(not (node / "registry.corp.example").exists(), "a registry of SKIP was written")
    expect(content("gone.example") == "old\n", "something was taken away")
    before = (node / "docker.io/hosts.toml").stat().st_ino
    expect("written" not in run(), "a second run wrote again")
    put(tree / "docker.io/hosts.toml", "# ours\ntwo\n")
    run()
    expect(content("docker.io").endswith("two\n"), "a change did not arrive")
    expect((node / "docker.io/hosts.toml").stat().st_ino != before, "written in place, not renamed")
    expect(not list(node.rglob(".*")), "temporary files are left")
    say("the nodes' script merges, updates, and keeps off what is not ours")


def pod_of(document):
    return document.get("spec", {}).get("template", {}).get("spec")


def containers(pod):
    return [*pod.get("initContainers", []), *pod["containers"]]


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def expect(condition, complaint):
    if not condition:
        sys.exit(f"kubernetes: FAILED: {complaint}")


def say(what):
    print(f"kubernetes: {what}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
