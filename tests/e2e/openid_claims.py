"""What the OpenID provider of these tests puts into ID tokens; Django must be set up before this is imported."""

from __future__ import annotations

from typing import Any

from oauth2_provider.oauth2_validators import OAuth2Validator


class Claims(OAuth2Validator):  # type: ignore[misc]  # published without types
    """Standard claims, and the groups of the person."""

    oidc_claim_scope = None

    def get_additional_claims(self, request: Any) -> dict[str, Any]:
        user = request.user
        groups = [group.name for group in user.groups.all()]
        return {"email": user.email, "email_verified": True, "name": user.first_name, "groups": groups}
