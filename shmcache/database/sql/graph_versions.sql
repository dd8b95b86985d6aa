SELECT id, version FROM graphs WHERE id = ANY (%(ids)s::uuid[])
