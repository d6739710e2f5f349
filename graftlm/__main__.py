"""python -m graftlm"""

from graftlm.cli.app import main

main()
