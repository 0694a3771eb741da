"""`python -m sortednet`."""

from sortednet import main

main()
