package portcullis

# Which images are violations: those that the rules refuse, or those that they audit.
default wanted = "refused"

wanted = outcome {
	outcome := input.parameters.outcome
}

# The rules below, without their type: what a rule does not say is then undefined, and no error of the
# compiler.
given = value {
	value := untyped(settings)
}

untyped(value) = value {
	true
}

violation[{"msg": line}] {
	not is_deletion
	node := nodes(input.review.object)[_]
	not had[node]
	finding := judge(node)
	finding.outcome == wanted
	line := finding.line
}

is_deletion {
	input.review.operation == "DELETE"
}

# An update is judged by what it brings.
had[node] {
	node := nodes(input.review.oldObject)[_]
}

# === what stands where images belong ===

# The value under a key. What has no keys is meant for something else than an image, and becomes a
# list on the way.
step(node, key) = value {
	is_object(node)
	value := object.get(node, key, null)
}

step(node, _) = null {
	is_null(node)
}

step(node, _) = [node] {
	not is_object(node)
	not is_null(node)
}

own_way = {"Pod", "PodTemplate", "CronJob"}

pod_spec(resource) = spec {
	resource.kind == "Pod"
	spec := step(resource, "spec")
}

pod_spec(resource) = spec {
	resource.kind == "PodTemplate"
	spec := step(step(resource, "template"), "spec")
}

pod_spec(resource) = spec {
	resource.kind == "CronJob"
	job := step(step(step(resource, "spec"), "jobTemplate"), "spec")
	spec := step(step(job, "template"), "spec")
}

pod_spec(resource) = spec {
	not own_way[resource.kind]
	spec := step(step(step(resource, "spec"), "template"), "spec")
}

items(spec, key) = [] {
	is_null(step(spec, key))
}

items(spec, key) = list {
	list := step(spec, key)
	is_array(list)
}

items(spec, key) = [[other]] {
	other := step(spec, key)
	not is_null(other)
	not is_array(other)
}

nodes(resource) = images {
	spec := pod_spec(resource)
	containers := {image |
		key := ["containers", "initContainers", "ephemeralContainers"][_]
		image := step(items(spec, key)[_], "image")
		is_there(image)
	}
	volumes := {image |
		image := step(step(items(spec, "volumes")[_], "image"), "reference")
		is_there(image)
	}
	images := containers | volumes
}

is_there(image) {
	not is_null(image)
	image != ""
}

# === reading images ===

# The first match of an expression, or nothing.
part(pattern, text) = found {
	found := regex.find_n(pattern, text, 1)[0]
} else = ""

# What is left of a text behind such a part.
behind(pattern, text) = rest {
	rest := substring(text, count(part(pattern, text)), -1)
}

# The same image without a name of the proxy in front.
plain(text) = image {
	first := min({number | regex.match(given.plan.own[number].when, text)})
	image := meant(given.plan.own[first], behind(`^[^/]*/`, text))
} else = text

meant(own, rest) = image {
	not regex.match(given.registry, rest)
	image := concat("", [own["default"], rest])
}

meant(_, rest) = rest {
	regex.match(given.registry, rest)
	not regex.match(given.misplaced, rest)
}

meant(_, rest) = "" {
	regex.match(given.registry, rest)
	regex.match(given.misplaced, rest)
}

# In canonical form, with its version. Undefined for what is no image.
canonical(text) = reference {
	image := plain(text)
	regex.match(given.plan.image, image)
	not regex.match(given.plan.address, image)
	written := part(given.name, image)
	first := part(given.registry, written)
	count(first) <= given.longest_name + 1
	name := canonical_name(registry_of(first), behind(given.registry, written))
	count(name) <= given.longest_name
	reference := concat("", [name, version(image, written)])
}

canonical_name(registry, path) = name {
	registry == given.hub
	not contains(path, "/")
	name := concat("", [registry, "/library/", path])
} else = name {
	name := concat("/", [registry, path])
}

version(image, name) = digest {
	contains(image, "@")
	digest := part(`@.*`, image)
} else = ":latest" {
	image == name
} else = tag {
	tag := substring(image, count(name), -1)
}

# Without the trailing dot and the port of HTTPS, and Docker Hub by its one name.
registry_of(first) = registry {
	host := part(`^[^:/]*[^:/.]`, lower(first))
	port := part(`[1-9][0-9]*`, part(`:[0-9]+`, first))
	registry := canonical_registry(host, port)
}

canonical_registry(host, port) = registry {
	port != ""
	port != "443"
	registry := concat(":", [host, port])
} else = registry {
	given.plan.hub[_] == host
	registry := given.hub
} else = host

# === deciding ===

judge(node) = {"outcome": "refused", "line": line} {
	not is_string(node)
	line := sprintf("(no text) %v: it is no image", [given.refused])
}

judge(node) = {"outcome": "refused", "line": line} {
	is_string(node)
	not canonical(node)
	line := sprintf("%v %v: it is no image", [shown(node), given.refused])
}

judge(node) = finding {
	is_string(node)
	asked := canonical(node)
	finding := decide(asked, rewrite(rewrite(asked)))
}

shown(text) = "(no text)" {
	regex.match(`[[:cntrl:]]`, text)
} else = text {
	count(text) <= 60
} else = short {
	short := concat("", [substring(text, 0, 60), "..."])
}

# The first clause that is about a reference.
clause(target) = found {
	first := min({number | is_about(given.plan.clauses[number], target)})
	found := given.plan.clauses[first]
} else = found {
	found := given.plan["default"]
}

is_about(entry, target) {
	regex.match(entry.when, target)
	not is_excepted(entry, target)
}

is_excepted(entry, target) {
	regex.match(entry.unless, target)
}

# What a reference is judged as. In its place, without a slash, why there is no such thing.
rewrite(target) = to {
	contains(target, "/")
	rule := clause(target)
	rule.says == "rewrite"
	to := destination(rule.to, target)
} else = target

destination(to, target) = reference {
	rest := remainder(to, target)
	reference := moved(to, concat("", [to.start, library(to, rest), rest]))
} else = reference {
	reference := concat("", [to.start, kept(to, target)])
}

library(to, rest) = "library/" {
	to.library
	not contains(rest, "/")
} else = ""

moved(to, target) = to.too_long {
	is_too_long(target)
} else = target

is_too_long(target) {
	regex.match(given.port_in_path, target)
}

is_too_long(target) {
	count(part(given.name, target)) > given.longest_name
}

kept(to, target) = suffix {
	not contains(target, "@")
	suffix := to.version
} else = suffix {
	suffix := behind(given.name, target)
}

# What is left of a target; undefined where nothing of it is kept.
remainder(replacement, target) = rest {
	rest := behind(sprintf("^([^/]*/){0,%d}", [replacement.skip]), target)
}

outcomes = {"audit": "audited", "refuse": "refused", "rewrite": "refused"}

decide(asked, target) = {"outcome": "refused", "line": line} {
	not contains(target, "/")
	line := sprintf("%v %v: %v", [asked, given.refused, target])
}

decide(asked, target) = {"outcome": outcome, "line": line} {
	contains(target, "/")
	words := clause(target)
	outcome := outcomes[words.says]
	line := concat("", [
		asked,
		" ",
		given[outcome],
		": ",
		pulled_from(asked, target),
		words.why,
		pin(words, target),
		instead(words, target),
		contact(words),
	])
}

pulled_from(asked, target) = text {
	asked != target
	text := sprintf("it is pulled from %v: ", [part(given.name, target)])
} else = ""

pin(words, target) = text {
	words.pin
	text := sprintf("; pin it as %v@sha256:...", [target])
} else = ""

instead(words, target) = text {
	rest := remainder(words.instead, target)
	text := sprintf("; use %v%v instead", [words.instead.start, rest])
} else = text {
	text := sprintf("; use %v instead", [words.instead.start])
} else = ""

contact(words) = text {
	text := sprintf("; contact %v", [words.contact])
} else = ""
