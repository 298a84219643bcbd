"""The commands of ``fuxictr-mm``, a module each: its arguments, the call, and what is shown of the result.

``scripts`` runs three of them as the scripts of FuxiCTR's names.
"""
