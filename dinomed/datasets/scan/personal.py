"""Columns that tell who somebody is, known by their names: what they hold stays out of manifests and messages.

The names are those that hospitals and DICOM use, in English. A column that is called otherwise is not known: this is a
net under a user's own care, no anonymisation.
"""

import re

_WORDS = frozenset(
    ["mrn", "accession", "address", "street", "zip", "zipcode", "postcode", "phone", "telephone", "mobile", "fax",
     "email", "mail", "ssn", "nhs", "passport", "insurance", "birth", "birthday", "birthdate", "dob", "date",
     "datetime", "surname", "forename", "physician", "doctor"]
)  # fmt: skip
_PHRASE = re.compile(
    r"(patients?|subjects?|person|first|middle|last|full|given|family|maiden)name|medicalrecord|hospital(id|n)"
    r"|patients?(id|n(o|um(ber)?)$)|socialsecurity|nationalid|postalcode|dateofbirth|phonen(o|um)|emails?$|^names?$"
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def is_personal(column: str) -> bool:
    """Whether a column of this name is expected to say who a person is, or on which date something was done to them.

    >>> is_personal("PatientName"), is_personal("birth_date"), is_personal("MRN"), is_personal("E-mail")
    (True, True, True, True)
    >>> is_personal("lesion_id"), is_personal("class_name"), is_personal("age"), is_personal("image_id")
    (False, False, False, False)
    """
    words = [word.lower() for word in _WORD.findall(column)]
    return not _WORDS.isdisjoint(words) or _PHRASE.search("".join(words)) is not None
