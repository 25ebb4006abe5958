"""Detection of columns with personal data by their names. Their values stay out of manifests and messages.

The names are the English ones of hospitals and DICOM. Columns with other names are not detected: this is a safeguard in
addition to the user's own care, not an anonymisation.
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
    """Return whether a column of this name is expected to identify a person or to hold the date of an examination.

    >>> is_personal("PatientName"), is_personal("birth_date"), is_personal("MRN"), is_personal("E-mail")
    (True, True, True, True)
    >>> is_personal("lesion_id"), is_personal("class_name"), is_personal("age"), is_personal("image_id")
    (False, False, False, False)
    """
    words = [word.lower() for word in _WORD.findall(column)]
    return not _WORDS.isdisjoint(words) or _PHRASE.search("".join(words)) is not None
