"""Commands for those who let people take part: raters, invitations, queues, contestants, pairings."""
