"""What others may see of a running agent: metrics, health, status, Events on the Node.

The main loop publishes a value each time it goes round; everything here reads that value, in
threads of its own, and can neither change anything nor hold the main loop up. Clients are
hostile: whoever is slow, silent or many costs nobody but themselves anything.

Text for people's terminals is not made here (`commands`).
"""
