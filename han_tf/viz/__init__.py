"""Pictures for people who know the paper: attention sheets (Fig. 7) and ranked lists."""
