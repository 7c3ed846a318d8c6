"""What nftables tells over netlink: its tables and base chains, and each change as it is made.

iptables' tables are among them where its backend is nft. Which of them matter is for others to say:
here is how the kernel's messages are read, and who made a change.

Nothing is changed here, and no command is run (`iptables`); rules are counted at most, never read.
"""
