"""Why an image is not kept: the words of the column `reason`, in the order in which they win.

An image has one reason, the first that applies; the manifest has no word for what is kept.
"""

from dinomed.pretrain.curation.filters.quality import REASONS as QUALITY

DENIED, NOT_ALLOWED = "denied", "not allowed"
UNREADABLE = "unreadable"
FACE = "face"
TEST_COPY, TEST_GROUP, TEST_LINK = "copy of an excluded image", "group of an excluded image", "linked to such an image"
EXACT, HASH, NEAR = "exact copy", "near-exact copy", "near copy"
UNLIKE = "unlike the trusted sets"
NOT_RETRIEVED = "not retrieved"
NOT_SAMPLED = "not sampled"

REASONS = (
    DENIED, NOT_ALLOWED, UNREADABLE, *QUALITY, FACE, TEST_COPY, TEST_GROUP, TEST_LINK, EXACT, HASH, NEAR, UNLIKE,
    NOT_RETRIEVED, NOT_SAMPLED,
)  # fmt: skip

MEANING = {
    DENIED: "its path or origin is on the deny list",
    NOT_ALLOWED: "its path or origin is not on the allow list",
    UNREADABLE: "the file cannot be read",
    **dict.fromkeys(QUALITY, "a quality filter (quality.* of the config)"),
    FACE: "a face was found, and faces.action is drop",
    TEST_COPY: "it is a copy of an image of an --exclude set",
    TEST_GROUP: "it is of a patient, lesion or video of an --exclude set",
    TEST_LINK: "it is linked to such an image, by a copy or by a group, over any number of steps",
    EXACT: "the same file is kept once (duplicate_of)",
    HASH: "resized or recompressed; its original is kept (duplicate_of)",
    NEAR: "its copy-detection descriptor is that of another image, which is kept (duplicate_of)",
    UNLIKE: "nothing in the trusted sets is like it",
    NOT_RETRIEVED: "no trusted set asked for it",
    NOT_SAMPLED: "its part of the pile is there often enough",
}
"""For people: what each word says."""
