"""Pictures made from records, for studies, for the command ``figures`` and for reports."""
