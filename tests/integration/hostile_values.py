"""What hostile clients put in the place of names, paths, shapes and the like."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

BIG = 2**63 - 1

# fmt: off
no_names = st.sampled_from(
    ["", "graph/embeddings/", "/etc/passwd", "a b", "é", "\0", "x" * 300, "labels\n", "%s%n", "{0}",
     "'; --", "a//b", " main"]
)
names = no_names | st.sampled_from(["nothing", "LABELS", "." * 9, "../labels", "_", "-1"])
paths = st.sampled_from(
    ["", ".", "..", "../x", "/tmp/x", "a/b", "a\\b", "~", "file:///tmp/x", "gs://a/b", "x" * 65,
     "a b", "\0", "a\n", "é", "0" * 32, "automatic/../x", "C:\\x", "x\0.json", "\u202e"]
)
uuids = st.sampled_from(
    ["", "../" * 10 + "aa", "g" * 32, "A" * 32, "0" * 31, "0" * 33, "0" * 31 + "\n"]
)
not_finite = st.sampled_from([np.nan, np.inf, -np.inf])
bad_dtypes = st.sampled_from(
    ["object", "O", "V8", "<U4", "S9", "datetime64[s]", "complex64", "float16", "bfloat16", "",
     "f4", "float32\0", "i8,f4", "void", "[('a', '<i4')]", "str", "Float32", "x" * 99]
)
bad_shapes = st.sampled_from(
    [[-1], [3, -3], [2**62], [BIG] * 3, [2**32, 2**32], [0, BIG], [-(2**63)], [1] * 17, [0, 2**60],
     [2**31, 2**31, 4], [2], [4, 3], [3, 4], [1, 3, 3], [9], [3, 0], [], [2**40, 3]]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | names | st.just(10**300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=4,
)
hostile_json = st.sampled_from(
    ["", "{", "null", "[]", "0", '"x"', "[" * 50_000, '{"a":' * 50_000, "NaN", "1e999", "9" * 5000,
     '{"name": "new", "fields": {}}', '{"fields": {"x": null}}', "\0", "{} {}", '{"name": NaN}']
)
# fmt: on
