"""The evaluation tasks that come with graftlm: one YAML file each, with its rows beside it."""
