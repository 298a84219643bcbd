"""INFNet equals a re-computation row by row, in which the history is scaled item by item."""

import pytest
import torch


def attention(layer, queries, keys):
    values = layer.value(keys)
    if layer.query is None:
        assert len(keys) == 1
        return values.expand(len(queries), -1)
    if len(keys) == 0:
        return torch.zeros_like(queries)
    scores = layer.query(queries) @ layer.key(keys).T / queries.shape[1] ** 0.5
    return torch.softmax(scores, dim=1) @ values


def row_v1(model, c, s, hubs):
    t, t_hub = model.tasks, model.shared
    c_hub, s_hub = hubs
    for layer in model.layers:
        f, gates = layer.flows, layer.gates
        own = attention(f["own"]["fields"], t, c) + attention(f["own"]["history"], t, s)
        new_t = attention(f["tasks"]["fields"], t_hub, c) + attention(f["tasks"]["history"], t_hub, s)
        if layer is not model.layers[-1]:
            new_c = attention(f["fields"]["history"], c_hub, s) + attention(f["fields"]["tasks"], c_hub, t)
            new_s = attention(f["history"]["fields"], s_hub, c) + attention(f["history"]["tasks"], s_hub, t)
            c, s = c * gates["fields"](new_c.flatten()).sigmoid(), s * gates["history"](new_s.flatten()).sigmoid()
            c_hub, s_hub = new_c, new_s
        t, t_hub = own * gates["tasks"](new_t.flatten()).sigmoid(), new_t
    return t


def row_v2(model, c, s, hubs):
    tokens = {"fields": c, "history": s, "tasks": model.tasks}
    hubs = {"fields": hubs[0], "history": hubs[1], "tasks": torch.cat([model.shared, model.tasks])}
    for layer in model.layers:
        kinds = ["tasks"] if layer is model.layers[-1] else list(tokens)
        for kind in kinds:
            views = [attention(layer.flows[kind][of], hubs[kind], tokens[of]) for of in tokens]
            hubs[kind] = layer.norm[kind](hubs[kind] + layer.join[kind](torch.cat(views, dim=1)))
        moved = {}
        for kind in kinds:
            alpha, beta = layer.gates[kind](hubs[kind].flatten()).chunk(2)
            moved[kind] = tokens[kind] * alpha.sigmoid() + beta
        tokens |= moved
    return tokens["tasks"]


@pytest.mark.parametrize("labels", [("label",), ("click", "like")], ids=["one label", "two labels"])
@pytest.mark.parametrize(("form", "row"), [("v1", row_v1), ("v2", row_v2)])
@pytest.mark.parametrize("settings", [{}, {"num_layers": 3, "num_hubs": 2, "num_shared": 1}], ids=["tiny", "other"])
def test_equals_the_dense_model(equals_dense, form, row, labels, settings):
    def dense(model, p):
        tasks = []
        for context, target, items, _ in p.rows():
            fields = torch.cat([context, target])
            s = model.item_token(items)
            hubs = model.field_hubs(fields).view(-1, model.embedding_dim), model.pool(s.sum(0, keepdim=True))
            tasks.append(row(model, fields.view(-1, model.embedding_dim), s, hubs))
        tasks = torch.stack(tasks)
        return torch.cat([head(tasks[:, i]) for i, head in enumerate(model.heads)], dim=1)

    equals_dense("INFNet_tiny", dense, form=form, labels=labels, **settings)
