SELECT refuse_orphans(%s::uuid[], %s::uuid[])
